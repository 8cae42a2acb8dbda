"""Folders that are deleted while a kill may come at any call."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgnet.volumes.errors import FGNetError
from fgnet.volumes.geometry import Box
from fgnet.volumes.reading import open_volume
from fgnet.volumes.removal import MARK, aside, remove_folder, remove_leftovers
from fgnet.volumes.space import Space
from fgnet.volumes.writing import create_labels

CHANGES = ("mkdir", "rmdir", "unlink", "rename", "open")
SHAPE = (2, 4, 4)


class KilledError(BaseException):
    """In the place of a kill."""


def killed_at(monkeypatch: pytest.MonkeyPatch, number: int, work: Callable[[], object]) -> bool:
    """Whether `work` was ended at one of its calls that change a folder; nothing happens from that call on."""
    calls = 0

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > number:
                raise KilledError
            return change(*arguments, **named)

        return call

    with monkeypatch.context() as killing:
        for name in CHANGES:
            killing.setattr(os, name, counted(getattr(os, name)))
        try:
            work()
        except KilledError:
            return True
    return False


def labels(path: Path, value: int, **options: Any) -> None:
    with create_labels(path, shape=SHAPE, chunks=(1, 2, 2), space=Space((1, 1, 1)), **options) as writer:
        writer.write(Box.from_shape(SHAPE), np.full(SHAPE, value, np.uint64))


def test_an_output_that_is_replaced_opens_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.zarr"
    for number in range(10_000):
        if not path.exists():
            labels(path, 1)
        if not killed_at(monkeypatch, number, lambda: labels(path, 2, overwrite=True)):
            break
        try:
            found = open_volume(path).read(Box.from_shape(SHAPE))
        except FGNetError:
            pass
        else:
            assert (found == found[0, 0, 0]).all()
        # What is there can be replaced.
        labels(path, 1, overwrite=True)
        assert [entry.name for entry in tmp_path.iterdir()] == ["out.zarr"]
    assert number > 20
    assert (open_volume(path).read(Box.from_shape(SHAPE)) == 2).all()


def test_what_a_kill_has_left_is_deleted_where_nothing_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.zarr"
    labels(path, 1)
    assert any(killed_at(monkeypatch, n, lambda: remove_folder(path)) and not path.exists() for n in range(100))
    assert [entry.name for entry in tmp_path.iterdir()] != []
    labels(path, 2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.zarr"]


@pytest.mark.parametrize("name", [".out.zarr.abc.replaced", ".out.zarr.replaced", ".out.zarr.a.b.replaced"])
def test_what_somebody_else_has_put_beside_it_stays(tmp_path: Path, name: str) -> None:
    path = tmp_path / "out.zarr"
    labels(path, 1)
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("dear")
    labels(path, 2, overwrite=True)
    assert (tmp_path / name / "notes.txt").read_text() == "dear"
    assert {entry.name for entry in tmp_path.iterdir()} == {"out.zarr", name}


def test_another_output_of_a_longer_name_is_none_of_its_business(tmp_path: Path) -> None:
    with aside(tmp_path / "out.zarr.more") as folder:
        remove_folder(tmp_path / "out.zarr")
        assert (folder / MARK).exists()
    assert not folder.exists()


def test_a_folder_in_use_is_no_leftover(tmp_path: Path) -> None:
    with aside(tmp_path / "tree.zarr") as first:
        (first / "new").mkdir()
        with aside(tmp_path / "tree.zarr") as second:
            remove_leftovers(tmp_path / "tree.zarr")
            assert (first / "new").is_dir()
            assert (second / MARK).is_file()
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from fgnet.volumes.removal import aside
with aside(Path(sys.argv[1])) as folder:
    (folder / "new").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_that_was_in_use_by_a_process_that_is_gone_is_a_leftover(tmp_path: Path) -> None:
    place = tmp_path / "tree.zarr"
    subprocess.run([sys.executable, "-c", KILLED, place], check=False, timeout=60)
    assert [entry.name for entry in next(tmp_path.iterdir()).iterdir() if entry.name != MARK] == ["new"]
    remove_leftovers(place)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_folder_of_its_own_is_not_deleted(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (tmp_path / "link").symlink_to(kept)
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(NotADirectoryError):
            remove_folder(tmp_path / name)
    remove_folder(tmp_path / "absent")
    assert {entry.name for entry in tmp_path.iterdir()} == {"kept", "link", "file"}
