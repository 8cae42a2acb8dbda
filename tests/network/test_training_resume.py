"""A run that was stopped goes on as if it had not been, or says why it cannot."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fgnet.network.augment import AugmentOptions
from fgnet.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fgnet.network.data import LabelledVolume
from fgnet.network.model import FGNet
from fgnet.network.training import train
from fgnet.volumes.errors import CheckpointError, TrainingError

pytestmark = pytest.mark.usefixtures("one_torch_thread", "no_picture")


def test_three_steps_and_three_more_equal_six_at_once(short: Any, tmp_path: Path, squares: LabelledVolume) -> None:
    at_once = short.run(tmp_path / "at_once", squares)
    stopped = train(tmp_path / "resumed", short.config, short.options, [squares])
    first = [next(stopped) for _ in range(3)]
    stopped.close()
    rest = short.run(tmp_path / "resumed", squares, resume=True)
    assert [p.step for p in first + rest] == [1, 2, 3, 4, 5, 6]
    assert [(p.loss, p.rate) for p in first + rest] == [(p.loss, p.rate) for p in at_once]
    for name in ("last.pt", "model.pt"):
        one, two = (load_checkpoint(tmp_path / folder / name) for folder in ("at_once", "resumed"))
        assert short.same(one.weights, two.weights)
        assert short.same(one.training, two.training)
    last = load_checkpoint(tmp_path / "resumed" / "last.pt").training
    assert last is not None
    assert {"average", "optimizer"} < last.keys()


def test_a_resumed_run_knows_its_best_score(short: Any, tmp_path: Path, squares: LabelledVolume) -> None:
    options = dataclasses.replace(short.options, validate_every=1)
    stopped = train(tmp_path, short.config, options, [squares], validate=short.scripted([3.0, 1.0, 2.0]))
    assert [next(stopped).score for _ in range(3)] == [3.0, 1.0, 2.0]
    stopped.close()
    short.run(tmp_path, squares, options, validate=short.scripted([1.5, 1.2, 1.1]), resume=True)
    provenance = load_checkpoint(tmp_path / "model.pt").provenance
    assert (provenance["steps"], provenance["validation"]) == (2, {"voi": 1.0})


def test_a_run_can_be_made_longer(short: Any, tmp_path: Path, squares: LabelledVolume) -> None:
    short.run(tmp_path, squares, dataclasses.replace(short.options, iterations=2))
    longer = short.run(tmp_path, squares, dataclasses.replace(short.options, iterations=3), resume=True)
    assert [progress.step for progress in longer] == [3]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ema": 0.9}, r"ema was 0\.5, is 0\.9"),
        ({"seed": 4}, "seed was 0, is 4"),
        ({"augment": AugmentOptions(noise=1.0)}, "augment was .*'noise': 12.0.* is .*'noise': 1.0"),
    ],
)
def test_other_options_are_refused_naming_them(
    short: Any, tmp_path: Path, squares: LabelledVolume, change: dict[str, Any], text: str
) -> None:
    short.run(tmp_path, squares, dataclasses.replace(short.options, iterations=1))
    with pytest.raises(TrainingError, match=text):
        short.run(tmp_path, squares, dataclasses.replace(short.options, **change), resume=True)


def test_a_run_goes_on_with_smaller_steps_in_another_precision_and_says_so(
    short: Any, tmp_path: Path, squares: LabelledVolume
) -> None:
    """fp16's scale is a part of the state that fp32 has no use for, and that fp16 begins anew after it."""
    scales = []
    for iterations, precision, rate in ((1, "fp16", 1e-3), (2, "fp32", 1e-4), (4, "fp16", 1e-4)):
        options = dataclasses.replace(short.options, iterations=iterations, precision=precision, learning_rate=rate)
        more = dataclasses.replace(options, schedule="constant", warmup=0, save_every=iterations, validate_every=7)
        ended = short.run(tmp_path, squares, more, resume=iterations > 1)
        assert {progress.rate for progress in ended} == {rate}
        state = load_checkpoint(tmp_path / "last.pt").training
        assert state is not None
        assert (state["options"]["learning_rate"], state["options"]["precision"]) == (rate, precision)
        scales.append(state["scaler"].get("scale"))
    assert scales[0] is not None
    assert scales[1:] == [None, scales[0]]
    lengths = [{"iterations": [1, 2], "save_every": [1, 2]}, {"iterations": [2, 4], "save_every": [2, 4]}]
    for name in ("last.pt", "model.pt"):
        provenance = load_checkpoint(tmp_path / name).provenance
        assert provenance["options"]["precision"] == "fp16"
        assert provenance["changes"] == [
            {"step": 1, "learning_rate": [1e-3, 1e-4], "precision": ["fp16", "fp32"], **lengths[0]},
            {"step": 2, "precision": ["fp32", "fp16"], **lengths[1]},
        ]


def test_another_configuration_is_refused_naming_the_field(short: Any, tmp_path: Path, squares: LabelledVolume) -> None:
    short.run(tmp_path, squares, dataclasses.replace(short.options, iterations=1))
    with pytest.raises(TrainingError, match="guidance was 'fga', is 'se'"):
        short.run(tmp_path, squares, config=dataclasses.replace(short.config, guidance="se"), resume=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": "circles"}, r"volumes was \['squares'\], is \['circles'\]"),
        ({"weight": 2.0}, r"volume_weights was \[1\.0\], is \[2\.0\]"),
        ({"known": "all but one"}, r"labelled_voxels was \[13824\], is \[13440\]"),
    ],
)
def test_other_volumes_are_refused_naming_what_differs(
    short: Any, tmp_path: Path, squares: LabelledVolume, change: dict[str, Any], text: str
) -> None:
    short.run(tmp_path, squares, dataclasses.replace(short.options, iterations=1))
    if "known" in change:
        change = {"known": squares.labels != 1}
    with pytest.raises(TrainingError, match=text):
        short.run(tmp_path, dataclasses.replace(squares, **change), resume=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"validated_on": "there"}, "validated_on was 'here', is 'there'"),
        (
            {"decoding": {"decoder": "blockwise"}},
            r"decoding was \{'decoder': 'waterz'\}, is \{'decoder': 'blockwise'\}",
        ),
    ],
)
def test_another_validation_is_refused_naming_what_differs(
    short: Any, tmp_path: Path, squares: LabelledVolume, change: dict[str, Any], text: str
) -> None:
    options = dataclasses.replace(short.options, iterations=1)
    facts = {"validated_on": "here", "decoding": {"decoder": "waterz"}}
    short.run(tmp_path, squares, options, validate=short.scripted([1.0]), provenance=facts)
    again = {"validate": short.scripted([1.0]), "provenance": facts | change, "resume": True}
    with pytest.raises(TrainingError, match=text):
        short.run(tmp_path, squares, **again)


@pytest.mark.parametrize(
    ("validate_every", "facts", "text"),
    [
        (1, {}, r"last\.pt: the run was validated; without"),
        # Stopped before its first validation.
        (5, {"held_out": 0.0, "validated_on": "here"}, r"last\.pt: the run was validated on here; without"),
    ],
)
def test_a_validated_run_does_not_lose_its_best_model_to_a_resume_without_the_validation(
    short: Any, tmp_path: Path, squares: LabelledVolume, validate_every: int, facts: dict[str, Any], text: str
) -> None:
    options = dataclasses.replace(short.options, validate_every=validate_every)
    stopped = train(tmp_path, short.config, options, [squares], validate=short.scripted([1.0, 2.0]), provenance=facts)
    for _ in range(2):
        next(stopped)
    stopped.close()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(TrainingError, match=f"{text}.*resume with the same --val-raw and --val-labels, or --dataset"):
        short.run(tmp_path, squares, options, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_of_a_version_with_fewer_options_can_be_resumed(
    short: Any, tmp_path: Path, squares: LabelledVolume
) -> None:
    short.run(tmp_path, squares, dataclasses.replace(short.options, iterations=1))
    old = load_checkpoint(tmp_path / "last.pt")
    assert old.training is not None
    del old.training["options"]["precision"], old.training["options"]["augment"]["blur"], old.provenance["seconds"]
    del old.provenance["volume_weights"], old.provenance["labelled_voxels"]
    save_checkpoint(tmp_path / "last.pt", old)
    assert [
        p.step for p in short.run(tmp_path, squares, dataclasses.replace(short.options, iterations=2), resume=True)
    ] == [2]


@pytest.mark.parametrize("lacking", ["options", "step", "average", "optimizer"])
def test_an_incomplete_last_checkpoint_is_refused(
    short: Any, tmp_path: Path, squares: LabelledVolume, lacking: str
) -> None:
    short.run(tmp_path, squares, dataclasses.replace(short.options, iterations=1))
    last = load_checkpoint(tmp_path / "last.pt")
    assert last.training is not None
    del last.training[lacking]
    save_checkpoint(tmp_path / "last.pt", last)
    with pytest.raises(CheckpointError, match=f"incomplete.*{lacking}"):
        short.run(tmp_path, squares, resume=True)


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("longer", [0, 1])
def test_a_run_whose_model_was_moved_away_keeps_the_weights_that_it_goes_on_from(
    short: Any, tmp_path: Path, squares: LabelledVolume, validated: bool, longer: int
) -> None:
    def validate(*scores: float) -> dict[str, Any]:
        return {"validate": short.scripted([*scores])} if validated else {}

    options = dataclasses.replace(short.options, iterations=4, validate_every=2)
    short.run(tmp_path, squares, options, **validate(1.0, 2.0))
    (tmp_path / "model.pt").rename(tmp_path / "away.pt")
    average = load_checkpoint(tmp_path / "last.pt").training
    assert average is not None
    told: list[str] = []
    running = train(
        tmp_path,
        short.config,
        dataclasses.replace(options, iterations=4 + longer),
        [squares],
        resume=True,
        say=told.append,
        **validate(2.5, 2.4),
    )
    for _ in range(2):
        kept = None if next(running, None) else load_checkpoint(tmp_path / "model.pt")
    assert kept is not None
    better = ", not the best before," if validated else ""
    assert told[-1] == f"{tmp_path / 'model.pt'} is gone: the weights{better} of step 4 are kept in its place"
    assert kept.provenance["steps"] == 4 + longer
    assert kept.provenance.get("validation") == ({"voi": 2.4 if longer else 2.5} if validated else None)
    if not longer:
        assert all(torch.equal(kept.weights[name], average["average"][f"module.{name}"]) for name in kept.weights)
    state = load_checkpoint(tmp_path / "last.pt").training
    assert state is not None
    assert state["best"] == (math.inf if not validated else 2.4 if longer else 2.5)


def test_a_run_that_had_no_model_yet_goes_on_without_an_extra_validation(
    short: Any, tmp_path: Path, squares: LabelledVolume
) -> None:
    stopped = train(tmp_path, short.config, short.options, [squares], validate=short.scripted([]))
    next(stopped)
    stopped.close()
    assert len(short.run(tmp_path, squares, resume=True, validate=short.scripted([1.0]))) == 5


@pytest.mark.parametrize("done", [1, 2])
def test_fewer_steps_than_are_done_are_refused(short: Any, tmp_path: Path, squares: LabelledVolume, done: int) -> None:
    short.run(tmp_path, squares, dataclasses.replace(short.options, iterations=2))
    before = (tmp_path / "last.pt").read_bytes()
    options = dataclasses.replace(short.options, iterations=done)
    if done == 2:
        assert short.run(tmp_path, squares, options, resume=True) == []
        return
    with pytest.raises(TrainingError, match=r"last\.pt: iterations is 1, and 2 steps are done \(give at least 2"):
        short.run(tmp_path, squares, options, resume=True)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_there_must_be_something_to_resume_from(short: Any, tmp_path: Path, squares: LabelledVolume) -> None:
    with pytest.raises(CheckpointError, match=r"last\.pt: no such file"):
        short.run(tmp_path, squares, resume=True)
    save_checkpoint(tmp_path / "last.pt", Checkpoint(short.config, FGNet(short.config).state_dict()))
    with pytest.raises(CheckpointError, match="weights only"):
        short.run(tmp_path, squares, resume=True)


def test_random_numbers_of_pytorch_go_on_where_they_were(short: Any, tmp_path: Path, squares: LabelledVolume) -> None:
    draws: list[float] = []

    def drawing(network: FGNet) -> dict[str, Any]:
        draws.append(float(torch.rand(())))
        return {"voi": 1.0}

    options = dataclasses.replace(short.options, iterations=4, validate_every=1)
    short.run(tmp_path / "at_once", squares, options, validate=drawing)
    stopped = train(tmp_path / "resumed", short.config, options, [squares], validate=drawing)
    for _ in range(2):
        next(stopped)
    stopped.close()
    torch.rand(5)
    short.run(tmp_path / "resumed", squares, options, validate=drawing, resume=True)
    assert draws[:4] == draws[4:]
    assert len(set(draws)) == 4


def test_a_run_without_a_better_validation_ends_and_waits_no_longer_when_it_is_resumed(
    short: Any, tmp_path: Path, squares: LabelledVolume
) -> None:
    options = dataclasses.replace(short.options, validate_every=1, patience=2, save_every=100)
    ended = short.run(tmp_path, squares, options, validate=short.scripted([3.0, 1.0, 2.0, 1.0]))
    assert [p.step for p in ended] == [1, 2, 3, 4]
    assert load_checkpoint(tmp_path / "model.pt").provenance["steps"] == 2
    assert short.run(tmp_path, squares, options, validate=short.scripted([]), resume=True) == []
    patient = dataclasses.replace(options, patience=3)
    assert [p.step for p in short.run(tmp_path, squares, patient, validate=short.scripted([5.0]), resume=True)] == [5]
