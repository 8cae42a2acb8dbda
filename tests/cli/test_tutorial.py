"""The tutorial's commands, in its order, at toy length.

They are parsed out of docs/tutorial.md: every line of its `sh` blocks is a command. So that they take seconds, `TOY`
puts other values in the place of the tutorial's, and `SHORTER` adds options to a command; nothing else is changed.
"""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"

# Of an option of a command, the value that stands in for the tutorial's. Small networks take the place of nano: PLAIN
# is exported in a moment, GUIDED has gates to look at.
TOY = {
    ("fgnet-sample", "--shape"): "8,96,96",
    ("fgnet-train", "--from"): "PLAIN",
    ("fgnet-train", "--attention-maps"): "GUIDED",
    ("fgnet-train", "--roi"): "0:8,0:64,0:80",
    ("fgnet-eval", "--crop"): "0:8,64:96,:",
}
SHORTER = {
    "fgnet-train": ["--iterations", "2", "--batch", "1", "--crop", "4,32,32"],
    "fgnet-run": ["--backend", "onnxruntime"],
    "fgnet-export": ["--backend", "onnxruntime"],
}


def commands(text: str) -> list[list[str]]:
    """The commands of a document, as lists of words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def shortened(command: list[str], models: dict[str, Path]) -> list[str]:
    """A command at toy length."""
    name, *words = command
    used = {option for option, _ in itertools.pairwise(words) if (name, option) in TOY}
    for option in used:
        value = TOY[name, option]
        words[words.index(option) + 1] = str(models.get(value, value))
    return [name, *words, *SHORTER.get(name, [])]


def test_the_tutorials_commands_run_in_its_order(
    model: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_torch_thread: None
) -> None:
    text = TUTORIAL.read_text()
    found = commands(text)
    assert [command[0] for command in found[:3]] == ["fgnet-sample", "fgnet-run", "fgnet-eval"]
    assert {"fgnet-train", "fgnet-export"} < {command[0] for command in found}
    every = {(command[0], word) for command in found for word in command}
    assert every >= TOY.keys(), "the tutorial has no such option any more"
    monkeypatch.chdir(tmp_path)
    for command in found:
        name, *arguments = shortened(command, {"PLAIN": model, "GUIDED": tiny_checkpoint})
        app = importlib.import_module(f"fgnet.cli.{name.removeprefix('fgnet-')}").app
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{shlex.join(command)}\n{result.stderr}"
    for picture in re.findall(r"(\S+\.png)", " ".join(" ".join(command) for command in found)):
        assert (tmp_path / picture).is_file(), picture


def test_the_tutorials_pictures_are_those_that_its_commands_draw() -> None:
    drawn = {Path(word).stem for command in commands(TUTORIAL.read_text()) for word in command if word.endswith(".png")}
    shown = re.findall(r"!\[.*?\]\((\S+?)\)", TUTORIAL.read_text())
    for picture in shown:
        assert (TUTORIAL.parent / picture).is_file()
        assert Path(picture).stem.removeprefix("tutorial-") in drawn
