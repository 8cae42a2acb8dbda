from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Imports point one way; a room may always import itself.
ALLOWED = {
    "cli": {"benchmarks", "export", "engine", "postproc", "network", "volumes"},
    "benchmarks": {"export", "engine", "postproc", "network", "volumes"},
    "export": {"network", "engine", "postproc", "volumes"},
    "network": {"engine", "postproc", "volumes"},
    "engine": {"postproc", "volumes"},
    "postproc": {"volumes"},
    "volumes": set(),
}


def _files() -> list[Path]:
    return sorted(path for room in ALLOWED for path in (ROOT / room).rglob("*.py"))


def _imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import of a file, those inside functions included."""
    package = f"fgnet.{path.relative_to(ROOT).parent.as_posix().replace('/', '.')}".split(".")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            # `from fgnet import volumes` names the room only in what it imports.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    wrong = [
        f"line {line}: {name}"
        for line, name in _imported(path)
        if name.split(".")[0] == "fgnet" and name.split(".")[1] not in ALLOWED[room] | {room}
    ]
    assert not wrong, f"{room} may import {sorted(ALLOWED[room])} of ours"


def test_the_rule_would_notice_a_wrong_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "volumes" / "wrong.py"
    path.parent.mkdir()
    path.write_text(
        "def f():\n    from fgnet import engine\n    from ..network import config\n    from .space import Space"
    )
    names = [name for _, name in _imported(path)]
    assert names == ["fgnet.engine", "fgnet.network.config", "fgnet.volumes.space.Space"]


@pytest.mark.parametrize("room", ["engine", "postproc", "volumes"])
def test_inference_has_no_module_level_import_of_torch(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert not [name for name in names if name.split(".")[0] in ("torch", "sam2")], path


@pytest.mark.parametrize(
    "module",
    ["benchmarks", "engine", "postproc", "volumes", "cli.bench", "cli.eval", "cli.run", "cli.sample", "cli.train"],
)
def test_importing_it_never_imports_torch(module: str) -> None:
    path = ROOT / module.replace(".", "/")
    if path.is_dir():
        wanted = [f"fgnet.{module}.{file.stem}" for file in sorted(path.glob("*.py")) if file.stem != "__init__"]
    else:
        wanted = [f"fgnet.{module}"]
    code = f"""
import importlib, sys
for name in {wanted}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "fgnet").startswith("fgnet"):
            raise
sys.exit("torch" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
