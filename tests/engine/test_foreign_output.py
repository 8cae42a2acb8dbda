from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fgnet.engine.foreign_output import refuse_foreign
from fgnet.engine.run_journal import RunJournal
from fgnet.engine.run_outputs import decoding_folder, drop_decoding, network_store, pieces_folder
from fgnet.engine.run_record import write_record
from fgnet.volumes.errors import OutputError
from fgnet.volumes.space import Space
from fgnet.volumes.writing import MultiscaleWriter, create_image


def image(path: Path) -> MultiscaleWriter:
    return create_image(path, shape=(2, 4, 4), dtype=np.uint8, space=Space((1, 1, 1)))


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("name", ["notes.txt", "tree.zarr/zarr.json", "0123456789abcdef", "0123456789abcdeF/x"])
def test_what_no_decoding_has_left_among_its_pieces_is_refused_and_stays(tmp_path: Path, name: str) -> None:
    output = tmp_path / "out.zarr"
    pieces_folder(output, "a decoding").mkdir(parents=True)
    (decoding_folder(output) / name).parent.mkdir(exist_ok=True)
    (decoding_folder(output) / name).write_text("dear")
    before = files(tmp_path)
    for refuse in (partial(refuse_foreign, overwrite=False), drop_decoding):
        with pytest.raises(OutputError, match=rf"put here by none: {name.split('/', maxsplit=1)[0]}") as caught:
            refuse(output)
        assert caught.value.remedy
    assert files(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_of_pieces_is_refused(tmp_path: Path, kind: str) -> None:
    output, place = tmp_path / "out.zarr", decoding_folder(tmp_path / "out.zarr")
    (tmp_path / "kept").mkdir()
    place.touch() if kind == "file" else place.symlink_to(tmp_path / "kept")
    with pytest.raises(OutputError, match="this is no folder"):
        refuse_foreign(output, overwrite=True)


def test_pieces_of_decodings_are_deleted(tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    for description in ("one", "another"):
        pieces_folder(output, description).mkdir(parents=True)
        (pieces_folder(output, description) / "plan.json").write_text(description)
    refuse_foreign(output, overwrite=True)
    drop_decoding(output)
    assert files(tmp_path) == []


def test_an_image_that_no_run_has_left_in_place_of_the_networks_affinities_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    writer = image(network_store(output))
    # As a run leaves it where it is killed.
    refuse_foreign(output, overwrite=True, rescales=True)
    writer.finish()
    with pytest.raises(OutputError, match="no run has left it there") as caught:
        refuse_foreign(output, overwrite=True, rescales=True)
    assert caught.value.remedy
    refuse_foreign(output, overwrite=True)
    with RunJournal(network_store(output)):
        refuse_foreign(output, overwrite=True, rescales=True)


def test_other_things_in_its_place_are_refused_too_but_for_an_empty_folder(tmp_path: Path) -> None:
    output, place = tmp_path / "out.zarr", network_store(tmp_path / "out.zarr")
    place.mkdir()
    refuse_foreign(output, overwrite=True, rescales=True)
    (place / "notes.txt").touch()
    with pytest.raises(OutputError, match="no run has left it there"):
        refuse_foreign(output, overwrite=True, rescales=True)
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="no run has left it there"):
        refuse_foreign(output, overwrite=True, rescales=True)


def test_an_image_that_no_run_has_made_is_not_overwritten(tmp_path: Path) -> None:
    """Raw EM, or labels that somebody has drawn; what a run declares complete has a record beside it."""
    output = tmp_path / "raw.zarr"
    writer = image(output)
    refuse_foreign(output, overwrite=True)
    writer.finish()
    with pytest.raises(OutputError, match=r"without the record of a run beside it, raw\.zarr\.run\.json") as caught:
        refuse_foreign(output, overwrite=True)
    assert caught.value.remedy
    refuse_foreign(output, overwrite=False)
    write_record(output, {})
    refuse_foreign(output, overwrite=True)
