from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.engine.bundle import (
    MANIFEST,
    PRECISIONS,
    BundleManifest,
    Decoding,
    Engine,
    Graphs,
    load_bundle,
    sha256,
)
from fgnet.volumes.errors import BundleError

CHECKPOINT = "first.pt"
ENCODER, DECODER, SINGLE, PLAN = "encoder.onnx", "decoder.onnx", "model.onnx", "decoder.sm89.plan"
BOTH = Graphs("fp32", decoder=DECODER, encoder=ENCODER)
BUILT = Engine("tensorrt", "10.3.0", "sm89", "fp32", DECODER, PLAN)

# Opening a bundle hashes its files and reads none of them.
CONTENT = {
    ENCODER: b"encoder " * 100,
    DECODER: b"decoder " * 100,
    SINGLE: b"both " * 100,
    PLAN: b"plan " * 100,
    CHECKPOINT: b"weights " * 300_000,
}

names = st.text("abcdefgh-_.", min_size=1, max_size=12)
extents = st.tuples(*[st.integers(1, 512)] * 3)
precisions = st.sampled_from(PRECISIONS)
graphs = st.builds(Graphs, precisions, names, st.none() | names)
engines = st.builds(Engine, names, names, names, precisions, names, names)
plain = st.dictionaries(names, st.none() | st.integers() | names | st.lists(st.integers()), max_size=4)


@st.composite
def manifests(draw: st.DrawFn) -> BundleManifest:
    patch = draw(extents)
    z, y, x = (draw(st.integers(1, extent)) for extent in patch)
    length = st.floats(0.1, 1e4)
    return BundleManifest(
        name=draw(names),
        config=draw(plain),
        patch=patch,
        stride=(z, y, x),
        voxel_sizes=tuple(draw(st.lists(st.tuples(length, length, length), max_size=3))),
        files=draw(st.dictionaries(names, names, max_size=3)),
        sections=draw(st.integers(1, patch[0])),
        graphs=tuple(draw(st.lists(graphs, min_size=1, max_size=4))),
        single=draw(st.none() | names),
        engines=tuple(draw(st.lists(engines, max_size=2))),
        checkpoint=draw(st.none() | names),
        decoding=Decoding(
            draw(names),
            draw(names),
            draw(st.integers(0, 100)),
            draw(st.floats(0, 1)),
            draw(st.none() | st.floats(0, 1)),
        ),
        parity=tuple(draw(st.lists(plain, max_size=3))),
        provenance=draw(plain),
    )


def manifest_of(folder: Path) -> BundleManifest:
    return BundleManifest(
        name="first",
        config={"encoder": "nano"},
        patch=(4, 64, 64),
        stride=(2, 32, 32),
        voxel_sizes=((10.0, 10.0, 10.0),),
        files={name: sha256(folder / name) for name in CONTENT},
        sections=2,
        graphs=(BOTH,),
        single=SINGLE,
        engines=(BUILT,),
        checkpoint=CHECKPOINT,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "first.bundle"
    path.mkdir()
    for name, content in CONTENT.items():
        (path / name).write_bytes(content)
    (path / MANIFEST).write_text(manifest_of(path).to_json())
    return path


def rewrite(folder: Path, **entries: Any) -> None:
    """Changes entries of a manifest; None as a value is written, ... takes the entry away."""
    data = json.loads((folder / MANIFEST).read_text()) | entries
    (folder / MANIFEST).write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


@settings(deadline=None)
@given(manifests())
def test_a_manifest_reads_back_as_it_was_written(manifest: BundleManifest) -> None:
    assert BundleManifest.from_json(manifest.to_json(), Path(MANIFEST)) == manifest


def test_a_bundle_as_it_was_written_opens(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert bundle.manifest == manifest_of(folder)
    assert (bundle.graphs(), bundle.checkpoint) == (BOTH, folder / CHECKPOINT)
    assert set(bundle.manifest.members) == set(CONTENT)


def test_a_bundle_opens_from_its_own_folder_and_wherever_it_is_moved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(folder, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_bundle(Path()).checkpoint.read_bytes() == CONTENT[CHECKPOINT]


def test_a_bundle_without_its_checkpoint_says_so_when_it_is_asked_for(folder: Path) -> None:
    (folder / CHECKPOINT).unlink()
    rewrite(folder, checkpoint=None, files={name: sha256(folder / name) for name in CONTENT if name != CHECKPOINT})
    with pytest.raises(BundleError, match="holds no checkpoint"):
        _ = load_bundle(folder).checkpoint


def test_graphs_are_found_by_precision_and_the_first_ones_are_the_default(folder: Path) -> None:
    half = Graphs("fp16", decoder=DECODER, encoder=None)
    rewrite(folder, graphs=[dataclasses.asdict(half), dataclasses.asdict(BOTH)])
    bundle = load_bundle(folder)
    assert (bundle.graphs(), bundle.graphs("fp16"), bundle.graphs("fp32")) == (half, half, BOTH)


def test_a_precision_that_the_bundle_lacks_is_refused_with_what_it_holds(folder: Path) -> None:
    with pytest.raises(BundleError, match="no graphs of precision int8, only fp32") as caught:
        load_bundle(folder).graphs("int8")
    assert caught.value.remedy == "export the model with --precision int8"


def _change_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _append(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _delete(file: Path) -> None:
    file.unlink()


def _make_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("name", list(CONTENT))
@pytest.mark.parametrize("damage", [_change_a_byte, _truncate, _append, _empty, _delete, _make_a_folder])
def test_a_file_that_is_not_as_exported_is_named(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(folder / name)
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    assert caught.value.where == str(folder / name)
    assert caught.value.remedy


@pytest.mark.parametrize("name", list(CONTENT))
def test_a_file_that_is_used_and_has_no_hash_is_refused(folder: Path, name: str) -> None:
    rewrite(folder, files={other: sha256(folder / other) for other in CONTENT if other != name})
    with pytest.raises(BundleError, match=rf"without hash.*{re.escape(name)}"):
        load_bundle(folder)


def _graph(name: str) -> dict[str, Any]:
    return {"graphs": [{"precision": "fp32", "encoder": ENCODER, "decoder": name}]}


def _encoder(name: str) -> dict[str, Any]:
    return {"graphs": [{"precision": "fp32", "encoder": name, "decoder": DECODER}]}


def _plan(name: str) -> dict[str, Any]:
    return {"engines": [dataclasses.asdict(BUILT) | {"plan": name}]}


def _checkpoint(name: str) -> dict[str, Any]:
    return {"checkpoint": name}


def _single(name: str) -> dict[str, Any]:
    return {"single": name}


@pytest.mark.parametrize("entry", [_graph, _encoder, _plan, _checkpoint, _single])
@pytest.mark.parametrize("kind", ["../{0}", "inner/{0}", "inner/../{0}", "/{0}", "{1}/{0}", "..", ".", ""])
def test_a_file_outside_the_bundle_is_refused_though_its_hash_is_right(
    folder: Path, entry: Callable[[str], dict[str, Any]], kind: str
) -> None:
    name = kind.format("secret.bin", folder.parent)
    for place in (folder.parent, folder / "inner", folder):
        place.mkdir(exist_ok=True)
        (place / "secret.bin").write_bytes(b"secret")
    secret = sha256(folder / "secret.bin")
    rewrite(folder, **entry(name), files=manifest_of(folder).files | {name: secret})
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("path", ["none", "empty", "file", "file/inner"])
def test_a_path_without_a_bundle_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="no bundle here") as caught:
        load_bundle(tmp_path / path)
    assert caught.value.where == str(tmp_path / path)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b'{"format": "fgnet-bundle"', b"model: nano", b"\xff\xfe\x00", b"[" * 10, b"[" * 200_000, b"1" * 9999],
)
def test_a_manifest_that_is_no_json_is_refused(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(BundleError, match=r"no JSON|cannot be read") as caught:
        load_bundle(folder)
    assert str(folder) in str(caught.value)


def test_a_manifest_cut_short_anywhere_is_refused(folder: Path) -> None:
    text = (folder / MANIFEST).read_text().rstrip()
    for length in range(0, len(text), 37):
        (folder / MANIFEST).write_text(text[:length])
        with pytest.raises(BundleError):
            load_bundle(folder)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"fgnet-bundle"', "{}", '{"format": "other", "version": 2}'])
def test_the_json_of_something_else_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="not the manifest of an fgnet bundle"):
        load_bundle(folder)


@pytest.mark.parametrize("version", [0, 1, 3, "2", None, ...])
def test_another_format_version_is_refused_and_said(folder: Path, version: object) -> None:
    rewrite(folder, version=version)
    with pytest.raises(BundleError, match=rf"bundle version {None if version is ... else version}, this fgnet reads 2"):
        load_bundle(folder)


NEEDED = [
    field.name
    for field in dataclasses.fields(BundleManifest)
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
]


@pytest.mark.parametrize("entry", NEEDED)
def test_an_entry_that_is_missing_is_named(folder: Path, entry: str) -> None:
    rewrite(folder, **{entry: ...})
    with pytest.raises(BundleError, match=rf"manifest (lacks|makes no sense).*{entry}") as caught:
        load_bundle(folder)
    assert caught.value.where == str(folder / MANIFEST)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("name", 3),
        ("config", []),
        ("patch", "4,64,64"),
        ("patch", [4, 64]),
        ("patch", [4, 64.5, 64]),
        ("patch", [0, 64, 64]),
        ("patch", None),
        ("stride", [8, 32, 32]),
        ("stride", [-1, 32, 32]),
        ("voxel_sizes", 10),
        ("voxel_sizes", [10]),
        ("voxel_sizes", [[10, 10]]),
        ("voxel_sizes", [["a", "b", "c"]]),
        ("files", ["model.onnx"]),
        ("files", None),
        ("files", dict.fromkeys(CONTENT, 5)),
        ("sections", 0),
        ("sections", 5),
        ("sections", 2.0),
        ("sections", None),
        ("graphs", None),
        ("graphs", []),
        ("graphs", DECODER),
        ("graphs", [DECODER]),
        ("graphs", [{"precision": "fp32", "decoder": DECODER}]),
        ("graphs", [{"precision": "fp8", "decoder": DECODER, "encoder": ENCODER}]),
        ("graphs", [{"precision": ["fp32"], "decoder": DECODER, "encoder": ENCODER}]),
        ("graphs", [{"precision": "fp32", "decoder": None, "encoder": ENCODER}]),
        ("graphs", [{"precision": "fp32", "decoder": DECODER, "encoder": 5}]),
        ("graphs", [{"precision": "fp32", "decoder": DECODER, "encoder": ENCODER, "head": DECODER}]),
        ("single", 5),
        ("engines", None),
        ("engines", [PLAN]),
        ("engines", [{"plan": PLAN}]),
        ("engines", [dataclasses.asdict(BUILT) | {"plan": None}]),
        ("engines", [dataclasses.asdict(BUILT) | {"precision": "fp8"}]),
        ("checkpoint", 5),
        ("checkpoint", [CHECKPOINT]),
        ("decoding", "default"),
        ("decoding", {"sharpness": 3}),
        ("decoding", {"threshold": "high"}),
        ("decoding", {"quantile": 50.5}),
        ("decoding", {"fragments": None}),
        ("parity", None),
        ("parity", {"passed": True}),
        ("parity", ["passed"]),
        ("provenance", "mine"),
        ("unheard_of", 1),
    ],
)
def test_an_entry_of_the_wrong_type_is_refused(folder: Path, entry: str, value: object) -> None:
    rewrite(folder, **{entry: value})
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    assert str(folder) in str(caught.value)
    assert caught.value.remedy
