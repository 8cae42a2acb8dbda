"""Folders and the names in them after a power cut, as far as calls can tell."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fgnet.volumes import durability
from fgnet.volumes.durability import make_folder, put_in_place, sync_folder


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was synchronised or renamed, in turn; a rename is told by its target."""
    told: list[Path] = []
    sync, rename = durability.sync_file, Path.rename
    monkeypatch.setattr(durability, "sync_file", lambda path: (told.append(path), sync(path))[1])
    monkeypatch.setattr(Path, "rename", lambda self, target: (told.append(target), rename(self, target))[1])
    return told


def folder_of(path: Path, content: str) -> Path:
    (path / "inside").mkdir(parents=True)
    (path / "inside" / "file").write_text(content)
    return path


def test_what_a_folder_holds_is_synchronised_before_it_takes_its_place(tmp_path: Path, synced: list[Path]) -> None:
    made, place = folder_of(tmp_path / "made", "new"), tmp_path / "place"
    put_in_place(made, place)
    assert synced == [made / "inside" / "file", made / "inside", made, place, tmp_path]
    assert (place / "inside" / "file").read_text() == "new"


def test_what_lay_there_is_put_aside(tmp_path: Path) -> None:
    made, place = folder_of(tmp_path / "made", "new"), folder_of(tmp_path / "place", "old")
    put_in_place(made, place, tmp_path / "aside")
    assert (place / "inside" / "file").read_text() == "new"
    assert (tmp_path / "aside" / "inside" / "file").read_text() == "old"


def test_a_folder_with_something_in_it_is_not_replaced_unasked(tmp_path: Path) -> None:
    made, place = folder_of(tmp_path / "made", "new"), folder_of(tmp_path / "place", "old")
    with pytest.raises(OSError, match="not empty"):
        put_in_place(made, place)
    assert (place / "inside" / "file").read_text() == "old"


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, place = folder_of(tmp_path / "made", "new"), folder_of(tmp_path / "place", "old")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self == made:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output"):
        put_in_place(made, place, tmp_path / "aside")
    assert (place / "inside" / "file").read_text() == "old"


def test_each_folder_that_was_made_is_named_on_the_disk(tmp_path: Path, synced: list[Path]) -> None:
    make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path / "a", tmp_path]
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_system_that_cannot_synchronise_folders_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    sync_folder(tmp_path)


def test_a_disk_that_fails_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "absent")
