"""For the tests of benchmarks: the smallest bundle that every row runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fgnet.engine.bundle import MANIFEST, Bundle, load_bundle


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    """Not to be changed."""
    return load_bundle(tiny_bundle)


@pytest.fixture
def altered(bundle: Bundle, tmp_path: Path) -> Callable[..., Bundle]:
    """(changes to the manifest) -> a bundle with the files of `bundle`, which may be replaced in its folder."""

    def alter(**changes: object) -> Bundle:
        folder = tmp_path / "altered"
        folder.mkdir()
        for file in bundle.path.iterdir():
            (folder / file.name).symlink_to(file)
        manifest = replace(bundle.manifest, **changes)  # type: ignore[arg-type]
        (folder / MANIFEST).unlink()
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        return Bundle(folder, manifest)

    return alter
