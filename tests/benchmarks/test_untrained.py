from __future__ import annotations

from pathlib import Path

import pytest

from fgnet.benchmarks.untrained import main

pytest.importorskip("sam2", reason="the network needs the extra fgnet[train]")


def test_a_folder_of_somebody_elses_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    assert main(["nano", str(tmp_path)]) == 1
    assert "it was not touched" in capsys.readouterr().err
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_an_encoder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["giant", str(tmp_path / "b")])
    assert refused.value.code == 2
    assert not (tmp_path / "b").exists()
