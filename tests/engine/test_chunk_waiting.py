"""Whoever follows a run waits for its chunks, and no longer than the run lasts."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from fgnet.engine.chunk_waiting import FinishedChunks
from fgnet.engine.run_journal import RunJournal, journal_path
from fgnet.engine.run_plan import RunPlan, make_plan
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import Box

PLAN: RunPlan = make_plan((8, 32, 64), (4, 16, 16), chunk=(8, 16, 16), region=Box((0, 0, 16), (8, 32, 64)))


def test_a_box_is_waited_for_until_all_its_chunks_are_there(tmp_path: Path) -> None:
    waited: list[float] = []
    with RunJournal(tmp_path / "out.zarr") as journal:
        journal.begin({})
        chunks = FinishedChunks(tmp_path / "out.zarr", PLAN)

        def wait() -> None:
            chunks.wait_for(Box((0, 0, 10), (8, 20, 20)))
            waited.append(time.monotonic())

        thread = threading.Thread(target=wait)
        thread.start()
        finished = []
        for index in ((0, 0, 1), (0, 1, 0), (0, 1, 2), (0, 0, 0)):
            journal.finished(index)
            time.sleep(0.15)
        assert not waited, "chunk (0, 1, 1) is missing"
        finished.append(time.monotonic())
        journal.finished((0, 1, 1))
        thread.join(10)
        assert len(waited) == 1
        assert waited[0] >= finished[0]
        # What is there is not waited for.
        chunks.wait_for(Box((0, 0, 0), (1, 1, 1)))


def test_a_line_that_is_not_whole_does_not_count(tmp_path: Path) -> None:
    with RunJournal(tmp_path / "out.zarr") as journal:
        journal.begin({})
        chunks = FinishedChunks(tmp_path / "out.zarr", PLAN)
        with journal_path(tmp_path / "out.zarr").open("a") as file:
            file.write("[0, 0,")
            file.flush()
            assert not chunks._has({(0, 0, 0)})
            file.write(" 0]\n")
            file.flush()
            assert chunks._has({(0, 0, 0)})


def test_a_run_that_has_ended_is_not_waited_for(tmp_path: Path) -> None:
    with RunJournal(tmp_path / "out.zarr") as journal:
        journal.begin({})
        journal.finished((0, 0, 0))
    chunks = FinishedChunks(tmp_path / "out.zarr", PLAN)
    chunks.wait_for(Box((0, 0, 0), (8, 16, 16)))
    with pytest.raises(DecodingError, match="has ended"):
        chunks.wait_for(Box((0, 0, 0), (8, 32, 16)))
