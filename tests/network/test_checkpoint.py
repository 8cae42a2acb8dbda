"""Checkpoints: read without running code, written whole or not at all."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from fgnet.network import checkpoint as checkpoint_module
from fgnet.network.checkpoint import FORMAT, Checkpoint, load_checkpoint, read_plain, save_checkpoint
from fgnet.network.config import FGNetConfig, preset
from fgnet.network.model import FGNet
from fgnet.volumes.errors import CheckpointError, OutputError

CONFIG = preset("nano", widths=(4, 4, 4, 4), patch=(4, 32, 32))


def checkpoint_of(config: FGNetConfig = CONFIG, **parts: Any) -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(config, FGNet(config).state_dict(), **parts)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model.pt", checkpoint_of())
    return tmp_path / "model.pt"


class Malice:
    """An object that creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    before = checkpoint_of(provenance={"steps": 3, "voxel_sizes": [[40.0, 4.0, 4.0]]}, training={"best": 0.5})
    path = tmp_path / "new" / "folder" / "model.pt"
    save_checkpoint(path, before)
    after = load_checkpoint(path)
    assert (after.config, after.provenance, after.training) == (CONFIG, before.provenance, before.training)
    assert after.weights.keys() == before.weights.keys()
    assert all(torch.equal(after.weights[key], before.weights[key]) for key in before.weights)
    assert [entry.name for entry in path.parent.iterdir()] == ["model.pt"]


def test_the_network_is_built_in_evaluation_mode_and_answers_the_same(saved: Path) -> None:
    torch.manual_seed(0)
    expected = FGNet(CONFIG).eval()
    network = load_checkpoint(saved).build()
    gray = torch.rand(1, 1, 2, 32, 32)
    assert not network.training
    with torch.inference_mode():
        assert torch.equal(network(gray).result, expected(gray).result)


def test_weights_of_another_configuration_are_refused_listing_the_keys(tmp_path: Path) -> None:
    other = preset("nano", widths=(4, 4, 4, 6), patch=(4, 32, 32), modules="without_fga")
    save_checkpoint(tmp_path / "mixed.pt", Checkpoint(CONFIG, checkpoint_of(other).weights))
    with pytest.raises(CheckpointError, match=r"missing: fine\.guides\.0\.gate") as refusal:
        load_checkpoint(tmp_path / "mixed.pt").build()
    assert "mixed.pt" in str(refusal.value)
    assert "refined.bottom.project.weight (6, 12, 1, 1) for (4, 8, 1, 1)" in str(refusal.value)


def test_a_weight_that_is_no_tensor_is_refused() -> None:
    whole = checkpoint_of()
    with pytest.raises(CheckpointError, match=r"1 not a tensor: refined\.head\.bias"):
        Checkpoint(CONFIG, whole.weights | {"refined.head.bias": [0.0]}).build()  # type: ignore[dict-item]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_needs_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "bad.pt", tmp_path / "trace"
    content = {"format": FORMAT, "version": 1, "weights": Malice(trace)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        load_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(saved: Path, share: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        load_checkpoint(saved)


@pytest.mark.parametrize("seed", range(5))
def test_a_file_of_noise_is_refused(tmp_path: Path, seed: int) -> None:
    (tmp_path / "noise.pt").write_bytes(torch.Generator().manual_seed(seed).get_state().numpy().tobytes()[seed:])
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "noise.pt")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "no dictionary"),
        ({"model": {}}, "not an fgnet checkpoint"),
        ({"format": FORMAT, "version": 99}, "version 99"),
        ({"format": FORMAT, "version": 1}, "incomplete"),
        ({"format": FORMAT, "version": 1, "config": 3, "weights": {}}, "incomplete"),
        ({"format": FORMAT, "version": 1, "config": {"widths": "abcd"}, "weights": {}}, "incomplete"),
        ({"format": FORMAT, "version": 1, "config": {}, "weights": 3}, "incomplete"),
        ({"format": FORMAT, "version": 1, "config": {"depth": 7}, "weights": {}}, "depth is 7"),
    ],
)
def test_other_contents_are_refused_saying_what_is_wrong(tmp_path: Path, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=reason):
        load_checkpoint(tmp_path / "other.pt")


@pytest.mark.parametrize("name", ["absent.pt", "."])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_plain(tmp_path / name)


def test_a_full_disk_leaves_the_old_checkpoint(saved: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    before = saved.read_bytes()
    partial = saved.with_name(f".model.pt.{os.uname().nodename}-{os.getpid()}-{threading.get_ident()}.part")
    partial.symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"model\.pt.*cannot be written"):
        save_checkpoint(saved, checkpoint_of())
    assert saved.read_bytes() == before
    assert not partial.is_symlink()


@pytest.mark.parametrize("error", [OSError("I/O error"), RuntimeError("unexpected pos"), KeyboardInterrupt()])
def test_a_write_that_fails_midway_leaves_the_old_checkpoint(
    saved: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = saved.read_bytes()

    def fail(_: Any, file: Any) -> None:
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(checkpoint_module.torch, "save", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError):
        save_checkpoint(saved, checkpoint_of())
    assert saved.read_bytes() == before
    assert [entry.name for entry in saved.parent.iterdir()] == ["model.pt"]


def test_a_folder_that_cannot_be_made_is_an_output_error(saved: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        save_checkpoint(saved / "inside_a_file" / "model.pt", checkpoint_of())


def test_what_a_killed_process_left_is_neither_read_nor_in_the_way(saved: Path) -> None:
    """The next run in the folder removes it: see `test_run_folder`."""
    saved.with_name(".model.pt.there-1-2.part").write_bytes(saved.read_bytes()[:1000])
    assert load_checkpoint(saved).config == CONFIG
    save_checkpoint(saved, checkpoint_of(provenance={"steps": 9}))
    assert load_checkpoint(saved).provenance == {"steps": 9}


def test_bytes_are_on_the_disk_before_they_take_the_name_and_the_name_after(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("sync"), sync(file))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (calls.append("replace"), replace(self, target))[1])
    save_checkpoint(saved, checkpoint_of())
    assert calls == ["sync", "replace", "sync"]
