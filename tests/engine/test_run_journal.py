"""What a journal says of a run after its lines were cut short in the middle."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fgnet.engine.chunk_waiting import FinishedChunks
from fgnet.engine.run_journal import JournalWriter, RunJournal, finished_chunks, journal_path
from fgnet.engine.run_plan import make_plan
from fgnet.volumes.errors import OutputError

PLAN = make_plan((8, 32, 64), (4, 16, 16), chunk=(8, 16, 16))


@pytest.mark.parametrize("written", [1, len("[0, 0, 1"), len("[0, 0, 1]")])
def test_a_line_that_a_full_disk_cut_short_costs_its_own_chunk_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    output, write = tmp_path / "out.zarr", os.write
    with RunJournal(output) as journal, JournalWriter(output) as other:
        journal.begin({"region": 1})
        journal.finished((0, 0, 0))
        with monkeypatch.context() as full:
            full.setattr(os, "write", lambda file, data: write(file, data[:written]))
            with pytest.raises(OutputError, match="no space is left"):
                journal.finished((0, 0, 1))
        other.finished((0, 0, 2))
    assert {(0, 0, 0), (0, 0, 2)} <= finished_chunks(output) <= {(0, 0, 0), (0, 0, 1), (0, 0, 2)}
    with RunJournal(output) as journal:
        journal.require({"region": 1})
        assert journal.done == finished_chunks(output)


@pytest.mark.parametrize(
    "line", ["[0, 0, 1][0, 0, 2]", "[0, 0[0, 0, 2]", "", "[0, 0]", "[0, 0, 1, 2]", '["0", 0, 2]', "{}", "7", "\0\0"]
)
def test_a_line_that_names_no_chunk_is_passed_over(tmp_path: Path, line: str) -> None:
    output = tmp_path / "out.zarr"
    with RunJournal(output) as journal:
        journal.begin({})
        journal.finished((0, 0, 0))
    with journal_path(output).open("a") as file:
        file.write(f"{line}\n[0, 1, 3]\n")
    with RunJournal(output) as journal:
        assert journal.done == {(0, 0, 0), (0, 1, 3)}
    chunks = FinishedChunks(output, PLAN)
    assert chunks._has({(0, 0, 0), (0, 1, 3)})
    assert not chunks._has({(0, 0, 1)})
    assert not chunks._has({(0, 0, 2)})


def test_a_run_that_could_not_be_named_has_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, write = tmp_path / "out.zarr", os.write
    with RunJournal(output) as journal, monkeypatch.context() as full:
        full.setattr(os, "write", lambda file, data: write(file, data[:9]))
        with pytest.raises(OutputError, match="no space is left"):
            journal.begin({"region": 1})
    with RunJournal(output) as journal:
        assert journal.run is None
        assert journal.empty


def test_a_first_line_of_something_else_is_refused(tmp_path: Path) -> None:
    journal_path(tmp_path / "out.zarr").write_text("[0, 0, 0]\n[0, 0, 1]\n")
    with pytest.raises(OutputError, match="no journal of this version"):
        RunJournal(tmp_path / "out.zarr")
