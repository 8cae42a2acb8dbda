from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from fgnet.volumes.matching import same_array
from fgnet.volumes.reading import open_volume

SHAPE = (2, 4, 5)


def same(first: object, second: object) -> bool:
    with open_volume(str(first)) as one, open_volume(str(second)) as other:
        return same_array(one, other)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "v.h5"
    with h5py.File(path, "w") as made:
        made["first"] = np.ones(SHAPE, np.uint32)
        made["second"] = np.ones(SHAPE, np.uint32)
        made["soft"] = h5py.SoftLink("/first")
        made["hard"] = made["first"]
    return path


@pytest.mark.parametrize("name", ["first", "/first", "soft", "hard"])
def test_links_inside_a_file_lead_to_one_array(file: Path, name: str) -> None:
    assert same(f"{file}:first", f"{file}:{name}")
    assert not same(f"{file}:second", f"{file}:{name}")


def test_links_from_another_file_lead_to_one_array(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(file.with_name("other.h5"), "w") as made:
        made["linked"] = h5py.ExternalLink("v.h5", "/soft")
        made["own"] = np.ones(SHAPE, np.uint32)
    other = file.with_name("other.h5")
    assert same(f"{other}:linked", f"{file}:first")
    assert not same(f"{other}:linked", f"{file}:second")
    assert not same(f"{other}:own", f"{file}:first")
    monkeypatch.chdir(file.parent)
    assert same("other.h5:linked", f"{file}:first")


def test_links_to_a_file_lead_to_one_array(file: Path) -> None:
    soft, hard = file.with_name("soft.h5"), file.with_name("hard.h5")
    soft.symlink_to(file)
    os.link(file, hard)
    for link in (soft, hard):
        assert same(f"{link}:first", f"{file}:first")
        assert not same(f"{link}:second", f"{file}:first")


def test_folders_are_told_by_what_they_are(tmp_path: Path) -> None:
    for name in ("a.zarr", "b.zarr"):
        zarr.create_array(str(tmp_path / name), data=np.ones(SHAPE, np.uint32))
    (tmp_path / "link.zarr").symlink_to(tmp_path / "a.zarr")
    assert same(tmp_path / "link.zarr", tmp_path / "a.zarr")
    assert not same(tmp_path / "link.zarr", tmp_path / "b.zarr")
