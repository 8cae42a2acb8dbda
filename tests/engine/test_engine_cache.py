"""Cached engines: found where they fit, refused where they do not, and always said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fgnet.engine.bundle import Bundle, BundleManifest, Engine, Graphs
from fgnet.engine.engine_cache import EngineKey, FoundEngine, cache_folder, find_or_build, graph_hash

KEY = EngineKey("0" * 64, "sm89", "tensorrt", "11.4.0", "fp16", {"tf32": False})
GRAPH = "decoder.fp16.onnx"


class Session:
    """One run of a command: what it found, said and built."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.bundle, self.folder = bundle, folder
        self.said: list[str] = []
        self.built = 0

    def find(self, key: EngineKey = KEY) -> FoundEngine:
        self.said.clear()

        def build() -> tuple[bytes, dict[str, Any]]:
            self.built += 1
            return f"plan of {key.target}".encode(), {"seconds": 1.0}

        return find_or_build(self.bundle, GRAPH, key, build, folder=self.folder, say=self.said.append)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    graphs = (Graphs("fp16", GRAPH, None),)
    manifest = BundleManifest("m", {}, (4, 64, 64), (2, 32, 32), (), {GRAPH: KEY.graph}, 1, graphs)
    return Session(Bundle(tmp_path / "bundle", manifest), tmp_path / "cache" / "engines")


def test_an_engine_is_built_once_and_found_again(session: Session) -> None:
    first = session.find()
    assert (first.origin, session.built, first.report) == ("built", 1, {"seconds": 1.0})
    assert "building an engine for sm89 and tensorrt 11.4.0 in fp16" in session.said[0]
    again = session.find()
    assert (again.origin, again.plan, again.path, again.report) == ("cache", first.plan, first.path, first.report)
    assert session.built == 1
    assert session.said == []
    assert sorted(file.suffix for file in session.folder.iterdir()) == [".json", ".plan"]


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "sm120"},
        {"version": "10.3.0"},
        {"graph": "1" * 64},
        {"options": {"tf32": True}},
        {"precision": "fp32"},
        {"backend": "tensorrt-rtx"},
        {"device": "another GPU"},
    ],
)
def test_an_engine_for_anything_else_is_not_used(session: Session, change: dict[str, Any]) -> None:
    session.find(replace(KEY, **change))
    assert session.find().origin == "built"
    assert session.built == 2


@pytest.mark.parametrize("change", [{"architecture": "sm120"}, {"version": "10.3.0"}, {"device": "another GPU"}])
def test_what_the_cached_engine_was_built_for_is_said(session: Session, change: dict[str, Any]) -> None:
    other = replace(KEY, **change)
    session.find(other)
    session.find()
    assert session.said[0] == f"{GRAPH}: the cached engine is for {other.target}; it is built again for {KEY.target}"
    assert session.find(other).plan == f"plan of {other.target}".encode()


def _truncate(plan: Path, _: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-1])


def _alter(plan: Path, _: Path) -> None:
    plan.write_bytes(b"x" + plan.read_bytes()[1:])


def _lose_description(_: Path, description: Path) -> None:
    description.unlink()


def _lose_plan(plan: Path, _: Path) -> None:
    plan.unlink()


def _garble_description(_: Path, description: Path) -> None:
    description.write_text("{")


def _redirect_description(_: Path, description: Path) -> None:
    data = json.loads(description.read_text())
    data["key"]["architecture"] = "sm120"
    description.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "altered or truncated"),
        (_alter, "altered or truncated"),
        (_lose_description, "incomplete"),
        (_lose_plan, "incomplete"),
        (_garble_description, "cannot be read"),
        (_redirect_description, "described as another one"),
    ],
)
def test_a_damaged_engine_is_said_and_built_again(
    session: Session, damage: Callable[[Path, Path], None], message: str
) -> None:
    path = session.find().path
    assert path is not None
    damage(path, path.with_suffix(".json"))
    found = session.find()
    assert (found.origin, found.plan) == ("built", f"plan of {KEY.target}".encode())
    assert message in session.said[0]
    assert "built again" in session.said[0]
    assert session.find().origin == "cache"


def _ship(session: Session, **change: str) -> None:
    session.bundle.path.mkdir()
    (session.bundle.path / "shipped.plan").write_bytes(b"shipped")
    fields = {"backend": "tensorrt", "version": KEY.version, "architecture": KEY.architecture, **change}
    engine = Engine(precision="fp16", graph=GRAPH, plan="shipped.plan", **fields)
    session.bundle = replace(session.bundle, manifest=replace(session.bundle.manifest, engines=(engine,)))


def test_the_bundles_own_engine_comes_first(session: Session) -> None:
    _ship(session)
    found = session.find()
    assert (found.plan, found.origin, found.path) == (b"shipped", "bundle", session.bundle.path / "shipped.plan")
    assert session.said == []


@pytest.mark.parametrize("change", [{"architecture": "sm86"}, {"version": "10.3.0"}])
def test_the_bundles_engine_for_another_gpu_or_version_is_left_and_said(
    session: Session, change: dict[str, str]
) -> None:
    _ship(session, **change)
    assert session.find().origin == "built"
    assert "the bundle's engine is for" in session.said[0]
    assert next(iter(change.values())) in session.said[0]
    assert KEY.target in session.said[0]


def test_an_engine_that_cannot_be_kept_is_used_and_said(session: Session) -> None:
    session.folder.parent.mkdir()
    session.folder.write_text("a file, not a folder")
    found = session.find()
    assert (found.origin, found.path) == ("built", None)
    assert "cannot be kept" in session.said[-1]


def test_a_build_that_fails_leaves_nothing_behind(session: Session) -> None:
    def build() -> tuple[bytes, dict[str, Any]]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_or_build(session.bundle, GRAPH, KEY, build, folder=session.folder)
    assert not session.folder.exists()


def test_the_folder_is_the_users_choice_or_the_platforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("FGNET_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine" / "engines"
    monkeypatch.delenv("FGNET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "fgnet" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "fgnet" / "engines"


def test_weights_beside_a_graph_belong_to_its_hash(session: Session) -> None:
    files = {GRAPH: KEY.graph, "other.onnx.data": "2" * 64}
    found = set()
    for weights in ({}, {f"{GRAPH}.data": "0" * 64}, {f"{GRAPH}.data": "1" * 64}):
        manifest = replace(session.bundle.manifest, files={**files, **weights})
        found.add(graph_hash(replace(session.bundle, manifest=manifest), GRAPH))
    assert len(found) == 3
    assert KEY.graph in found
