"""Runs whose network sees the volume at another voxel size: what they write, and what a stop costs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from fgnet.engine.gray_reader import ArraySource
from fgnet.engine.inference import predict_affinities
from fgnet.engine.network_grid import NetworkGrid, automatic_grid, nearest_size, voxel_size_warning
from fgnet.engine.pipeline import OneProcess, Run, Streamer, segment_volume
from fgnet.engine.rescaled_streaming import RescaledStreamer
from fgnet.engine.run_journal import RunJournal, journal_path
from fgnet.engine.run_options import RunOptions
from fgnet.engine.run_outputs import network_store
from fgnet.engine.streaming import RunStoppedError
from fgnet.volumes.errors import OutputError, VolumeError
from fgnet.volumes.geometry import Box
from fgnet.volumes.reading import Volume, open_volume
from fgnet.volumes.rescaling import Rescaling
from fgnet.volumes.space import Space
from fgnet.volumes.writing import create_image

SHAPE, PATCH, STRIDE = (8, 150, 140), (4, 64, 64), (2, 48, 48)
NM, SEEN = (30.0, 5.0, 5.0), (45.0, 4.0, 8.0)
GRID = NetworkGrid(SEEN)
RESCALING = Rescaling(SHAPE, (1.5, 0.8, 1.6))


def store(path: Path, values: npt.NDArray[Any], resolution: tuple[float, ...] | None = NM) -> Path:
    array = zarr.create_array(str(path), shape=values.shape, chunks=(4, 64, 64), dtype=values.dtype)
    array[:] = values
    if resolution:
        array.attrs["resolution"] = list(resolution)
    return path


@pytest.fixture(scope="module")
def gray() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


@pytest.fixture(scope="module")
def volume(gray: npt.NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("gray") / "v.zarr", gray)


@pytest.fixture(scope="module")
def expected(gray: npt.NDArray[np.uint8], slot_runner: Any) -> npt.NDArray[np.uint8]:
    """The definition, with everything in memory: gray to the network's grid, affinities of it, and these back."""
    seen = RESCALING.gray(Box.from_shape(RESCALING.network_shape), lambda box: gray[box.slices])
    made = predict_affinities(ArraySource(seen), slot_runner(PATCH), stride=STRIDE)
    return RESCALING.affinities(Box.from_shape(SHAPE), lambda box: made[(slice(None), *box.slices)])


def run(
    volume: Path, output: Path, streamer: Streamer, mask: Path | None = None, stop: Any = lambda: False, **options: Any
) -> Run:
    asked = RunOptions(output, 0.5, decoder="none", stride=STRIDE, **options)
    with open_volume(volume) as opened:
        if mask is None:
            return segment_volume(opened, streamer, asked, stop=stop)
        with open_volume(mask) as tissue:
            return segment_volume(opened, streamer, asked, mask=tissue, stop=stop)


def affinities_of(output: Path) -> tuple[npt.NDArray[np.uint8], Volume]:
    with open_volume(output, ndim=(4,)) as found:
        return found.read(found.box), found


@pytest.fixture
def streamer(slot_runner: Any) -> RescaledStreamer:
    return RescaledStreamer(OneProcess(slot_runner(PATCH)), GRID)


def test_affinities_have_the_volumes_voxels(
    volume: Path, expected: npt.NDArray[np.uint8], streamer: RescaledStreamer, tmp_path: Path
) -> None:
    made = run(volume, tmp_path / "o.zarr", streamer)
    found, opened = affinities_of(tmp_path / "o.zarr")
    np.testing.assert_array_equal(found, expected)
    assert (opened.space.voxel_size, opened.space.offset) == (NM, (0, 0, 0))
    assert made.identity["network voxel size"] == list(SEEN)
    assert len(np.unique(found)) > 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.zarr", "o.zarr.run.json"]


def test_a_region_is_that_of_the_whole(
    volume: Path, expected: npt.NDArray[np.uint8], streamer: RescaledStreamer, tmp_path: Path
) -> None:
    box = Box((3, 17, 40), (7, 150, 101))
    run(volume, tmp_path / "o.zarr", streamer, box=box)
    found, opened = affinities_of(tmp_path / "o.zarr")
    np.testing.assert_array_equal(found, expected[(slice(None), *box.slices)])
    assert opened.space.offset == (90, 85, 200)


def test_a_mask_changes_nothing_inside_of_it_and_saves_blocks(
    volume: Path, expected: npt.NDArray[np.uint8], streamer: RescaledStreamer, tmp_path: Path
) -> None:
    inside = np.zeros(SHAPE, np.uint8)
    inside[:, 20:50, 70:90] = 1
    coarse = store(tmp_path / "m.zarr", inside[:, ::5, ::5], None)
    made = run(volume, tmp_path / "o.zarr", streamer, mask=coarse)
    np.testing.assert_array_equal(affinities_of(tmp_path / "o.zarr")[0], expected * inside)
    assert made.streaming.done < run(volume, tmp_path / "all.zarr", streamer).streaming.done


class StopsLater:
    """Says stop when it is asked for the n-th time."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self) -> bool:
        self.times -= 1
        return self.times < 0


@pytest.fixture(scope="module")
def asked(volume: Path, slot_runner: Any, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How often a run asks whether to stop: before each block, before each chunk of the output, and twice after."""
    stop = StopsLater(10**6)
    run(
        volume,
        tmp_path_factory.mktemp("asked") / "o.zarr",
        RescaledStreamer(OneProcess(slot_runner(PATCH)), GRID),
        stop=stop,
    )
    return 10**6 - stop.times


@pytest.mark.parametrize("before_the_end", [30, 4, 2], ids=["in the network", "in the output", "after it"])
def test_a_run_that_was_stopped_anywhere_goes_on_and_gives_the_same_bytes(
    volume: Path, expected: npt.NDArray[np.uint8], asked: int, slot_runner: Any, tmp_path: Path, before_the_end: int
) -> None:
    output, first, second = tmp_path / "o.zarr", slot_runner(PATCH), slot_runner(PATCH)
    with pytest.raises(RunStoppedError):
        run(volume, output, RescaledStreamer(OneProcess(first), GRID), stop=StopsLater(asked - before_the_end))
    with pytest.raises(OutputError, match="did not finish"):
        run(volume, output, RescaledStreamer(OneProcess(second), GRID))
    made = run(volume, output, RescaledStreamer(OneProcess(second), GRID), resume=True)
    np.testing.assert_array_equal(affinities_of(output)[0], expected)
    assert not network_store(output).exists()
    assert not journal_path(network_store(output)).exists()
    # Where the network was through, only the block to warm up with is run again.
    assert (made.resumed, second.decoded > 1) == {30: (0, True), 4: (2, False), 2: (4, False)}[before_the_end]


def test_what_another_run_has_left_is_not_taken(
    volume: Path, expected: npt.NDArray[np.uint8], slot_runner: Any, tmp_path: Path
) -> None:
    output = tmp_path / "o.zarr"
    other = RescaledStreamer(OneProcess(slot_runner(PATCH)), NetworkGrid((30.0, 8.0, 8.0)))
    with pytest.raises(RunStoppedError):
        run(volume, output, other, stop=StopsLater(5))
    assert network_store(output).exists()
    this = RescaledStreamer(OneProcess(slot_runner(PATCH)), GRID)
    with pytest.raises(OutputError, match="network voxel size was"):
        run(volume, output, this, resume=True)
    run(volume, output, this, overwrite=True)
    np.testing.assert_array_equal(affinities_of(output)[0], expected)


def test_a_run_that_does_not_rescale_leaves_nothing_of_one_that_did(
    volume: Path, streamer: RescaledStreamer, slot_runner: Any, tmp_path: Path
) -> None:
    output = tmp_path / "o.zarr"
    with pytest.raises(RunStoppedError):
        run(volume, output, streamer, stop=StopsLater(5))
    kept = tmp_path / "another.zarr.network"
    shutil.copytree(network_store(output), kept)
    with RunJournal(network_store(output)), pytest.raises(OutputError, match="another run is writing"):
        run(volume, output, OneProcess(slot_runner(PATCH)), overwrite=True)
    assert journal_path(output).exists()
    run(volume, output, OneProcess(slot_runner(PATCH)), overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {output.name, f"{output.name}.run.json", kept.name}


def test_a_store_that_is_of_no_unfinished_run_stays(volume: Path, slot_runner: Any, tmp_path: Path) -> None:
    output = tmp_path / "o.zarr"
    mine = store(network_store(output), np.zeros(SHAPE, np.uint8))
    run(volume, output, OneProcess(slot_runner(PATCH)), overwrite=True)
    with open_volume(mine) as found:
        assert tuple(found.shape) == SHAPE


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}], ids=["new", "overwrite", "resume"])
def test_nor_is_one_replaced_by_a_run_that_rescales(
    volume: Path, streamer: RescaledStreamer, tmp_path: Path, options: dict[str, bool]
) -> None:
    output = tmp_path / "o.zarr"
    with create_image(network_store(output), shape=SHAPE, dtype=np.uint8, space=Space(NM)) as mine:
        mine.write(Box.from_shape(SHAPE), np.ones(SHAPE, np.uint8))
    with pytest.raises(OutputError, match="no run has left it there"):
        run(volume, output, streamer, **options)
    assert [path.name for path in tmp_path.iterdir()] == [network_store(output).name]
    with open_volume(network_store(output)) as found:
        assert found.read(found.box).all()


def test_what_the_network_has_made_outlives_an_output_that_was_deleted(
    volume: Path, expected: npt.NDArray[np.uint8], asked: int, slot_runner: Any, tmp_path: Path
) -> None:
    output, second = tmp_path / "o.zarr", slot_runner(PATCH)
    with pytest.raises(RunStoppedError):
        run(volume, output, RescaledStreamer(OneProcess(slot_runner(PATCH)), GRID), stop=StopsLater(asked - 4))
    shutil.rmtree(output)
    run(volume, output, RescaledStreamer(OneProcess(second), GRID), resume=True)
    np.testing.assert_array_equal(affinities_of(output)[0], expected)
    assert second.decoded <= 1
    assert not network_store(output).exists()


def test_gray_of_other_types_is_brought_to_8_bits_before_it_is_resampled(
    gray: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8], slot_runner: Any, tmp_path: Path
) -> None:
    wide = store(tmp_path / "w.zarr", gray.astype(np.uint16) * 100 + 1000)
    gray_range = (1000.0, 26500.0)
    streamer = RescaledStreamer(OneProcess(slot_runner(PATCH)), NetworkGrid(SEEN, gray_range))
    run(wide, tmp_path / "o.zarr", streamer, rescale=gray_range)
    np.testing.assert_array_equal(affinities_of(tmp_path / "o.zarr")[0], expected)


TRAINED = ((10.0, 10.0, 10.0), (40.0, 4.0, 4.0))


@pytest.mark.parametrize(
    ("size", "near"),
    [
        ((10.0, 10.0, 10.0), True),
        ((12.5, 8.0, 12.5), True),
        ((12.6, 10.0, 10.0), False),
        ((10.0, 10.0, 7.9), False),
        ((40.0, 4.0, 8.0), False),
        ((35.0, 5.0, 4.0), True),
    ],
)
def test_a_quarter_of_a_voxel_size_is_near_enough(
    gray: npt.NDArray[np.uint8], tmp_path: Path, size: tuple[float, float, float], near: bool
) -> None:
    with open_volume(store(tmp_path / "v.zarr", gray, size)) as opened:
        warning, grid = voxel_size_warning(opened, TRAINED), automatic_grid(opened, TRAINED, None)
        assert ((warning is None), (grid is None)) == (near, near)
        if grid is not None and warning is not None:
            assert grid.voxel_size == nearest_size(size, TRAINED)
            assert "--rescale auto" in warning
            assert voxel_size_warning(grid.gray(opened), TRAINED) is None


def test_an_unknown_voxel_size_is_told_where_it_could_be_compared_and_is_not_rescaled(
    gray: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    with open_volume(store(tmp_path / "v.zarr", gray, None)) as opened:
        assert "the voxel size is not known" in str(voxel_size_warning(opened, TRAINED))
        assert voxel_size_warning(opened, ()) is None
        for attempt in (lambda: automatic_grid(opened, TRAINED, None), lambda: GRID.gray(opened)):
            with pytest.raises(VolumeError, match="voxel size is not known"):
                attempt()


def test_a_model_that_does_not_say_what_it_was_trained_on_warns_of_nothing(volume: Path) -> None:
    with open_volume(volume) as opened:
        assert voxel_size_warning(opened, ()) is None
        assert automatic_grid(opened, (), None) is None


def test_a_view_is_read_in_pieces_where_it_is_large(
    volume: Path, gray: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_volume(volume) as opened:
        view = GRID.gray(opened)
        whole = view.read(view.box)
        monkeypatch.setattr("fgnet.volumes.rescaled_volume._PIECE", 3 * 150 * 140)
        np.testing.assert_array_equal(view.read(view.box), whole)
        assert (view.chunks, view.dtype, view.shape) == ((3, 80, 40), np.uint8, RESCALING.network_shape)
