"""Fixtures that several rooms share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fgnet.engine.bundle import Bundle, load_bundle
from fgnet.engine.host_runner import HostRunner
from fgnet.volumes.geometry import Triple

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Path of a file of real data beside the repository; skips the test, naming the file, where it is absent."""

    def find(name: str) -> Path:
        path = _SHARED / name
        if not path.is_file():
            pytest.skip(f"real data file is missing: {path}")
        return path

    return find


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a small whole network for patches of 4 x 64 x 64, with random weights, whose affinities vary.

    Its batch norms have seen a few blocks, so that folding them away has something to get wrong.
    """
    torch = pytest.importorskip("torch", reason="the network needs the extra fgnet[train]")
    pytest.importorskip("sam2", reason="the network needs the extra fgnet[train]")
    from fgnet.network.checkpoint import Checkpoint, save_checkpoint
    from fgnet.network.config import preset
    from fgnet.network.model import FGNet

    torch.manual_seed(0)
    network = FGNet(preset("nano", patch=(4, 64, 64), widths=(8, 12, 16, 24)))
    texture = torch.nn.functional.interpolate(torch.rand(2, 1, 4, 16, 16), (4, 64, 64), mode="trilinear")
    with torch.no_grad():
        for _ in range(3):
            network.train()(texture)
        assert network.refined is not None
        # Logits around 0: about half of the voxels are boundary, so that there are segments to tell apart.
        deviation, mean = torch.std_mean(network.eval()(texture).refined, (0, 2, 3, 4))
        head = network.refined.head
        head.weight.mul_((2 / deviation)[:, None, None, None])
        head.bias.sub_(mean).mul_(2 / deviation)
    path = tmp_path_factory.mktemp("tiny") / "tiny.pt"
    provenance = {"voxel_sizes": [(10.0, 10.0, 10.0)], "version": "test"}
    save_checkpoint(path, Checkpoint(network.config, network.state_dict(), provenance))
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """The folder of the bundle that `tiny_checkpoint` exports to; not to be changed."""
    pytest.importorskip("onnxscript", reason="the export needs the extra fgnet[train]")
    from fgnet.export.bundle_writer import ExportOptions, export_bundle

    return export_bundle(tiny_checkpoint, tiny_checkpoint.parent / "tiny.bundle", ExportOptions()).path


@pytest.fixture(scope="session")
def precise_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `tiny_bundle` with its graphs in fp16, bf16 and int8 too, no report of parity; not to be changed.

    The graphs are those that an export writes, made of the fp32 ones at hand, for tracing is what takes the time.
    """
    import shutil
    from dataclasses import replace

    import onnx

    from fgnet.engine.bundle import MANIFEST, sha256
    from fgnet.engine.gray_reader import ArraySource
    from fgnet.export import precision_graphs
    from fgnet.export.onnx_graph import TwoGraphs
    from fgnet.network.checkpoint import load_checkpoint
    from fgnet.volumes.neuropil import NeuropilOptions, make_neuropil

    folder = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("precise") / "precise.bundle")
    bundle = load_bundle(folder)
    network, manifest = load_checkpoint(bundle.checkpoint).build(), bundle.manifest
    assert manifest.graphs[0].encoder is not None
    plain = TwoGraphs(onnx.load(folder / manifest.graphs[0].encoder), onnx.load(folder / manifest.graphs[0].decoder))
    tissue = make_neuropil(NeuropilOptions((8, 80, 96), (10.0, 10.0, 10.0), 1)).raw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision_graphs, "two_graphs", lambda *_: plain)
        graphs = precision_graphs.write_graphs(
            network, folder, manifest.sections, ("fp32", "fp16", "bf16", "int8"), ArraySource(tissue), lambda _: None
        )
    files = {file.name: sha256(file) for file in folder.iterdir() if file.name != MANIFEST}
    (folder / MANIFEST).write_text(replace(manifest, graphs=graphs, parity=(), files=files).to_json())
    return folder


@pytest.fixture(scope="session")
def precise(precise_bundle: Path) -> Bundle:
    """`precise_bundle`, opened."""
    return load_bundle(precise_bundle)


@pytest.fixture(scope="session")
def build() -> Callable[[Bundle], Any]:
    """Makes the eager network of a bundle, as `open_runner` asks for it."""

    def build(bundle: Bundle) -> Any:
        from fgnet.network.checkpoint import load_checkpoint

        return load_checkpoint(bundle.checkpoint).build()

    return build


class SlotRunner(HostRunner):
    """A network in whole numbers, exact, whose affinities depend on every section of a block and on their order.

    It holds features in slots, which are full of nonsense until something is encoded into them, and refuses to work
    outside of them.

    Args:
        patch: (z, y, x) voxels of a block.
        sections: that one call of `encode` takes; those of a block by default.
        slots: as few as will do by default.
    """

    def __init__(self, patch: Triple, sections: int | None = None, slots: int | None = None) -> None:
        from fgnet.engine.runner import least_slots

        encoded = patch[0] if sections is None else sections
        super().__init__("slots", "fp32", patch, encoded, slots or least_slots(patch[0], encoded))
        nonsense = np.random.default_rng(0).integers(0, 10**6, (self.slots, *patch[1:]))
        self.gray[...] = nonsense % 256
        self.values = nonsense
        self.loaded: list[int] = []
        self.encoded: list[int] = []
        self.decoded = 0

    def features(self) -> list[npt.NDArray[Any]]:
        return [self.values]

    def load(self, gray: Any, slot: int) -> None:
        assert (gray.shape[1:], gray.dtype) == (self.patch[1:], np.uint8)
        assert 0 <= slot <= self.slots - gray.shape[0]
        super().load(gray, slot)
        self.loaded.append(gray.shape[0])

    def encode(self, slot: int) -> None:
        assert 0 <= slot <= self.slots - self.sections
        self.values[slot : slot + self.sections] = self._features(self.gray[slot : slot + self.sections])
        self.encoded.append(slot)

    def decode(self, slot: int, affinities: Any) -> None:
        assert (affinities.shape, affinities.dtype) == ((3, *self.patch), np.uint8)
        assert 0 <= slot <= self.slots - self.patch[0]
        self.decoded += 1
        gray = self.block(slot)
        features = self.values[slot : slot + self.patch[0]] if self.sections else self._features(gray)
        affinities.host[...] = self._affinities(features, gray)

    def move(self, source: int, target: int, count: int) -> None:
        assert 0 <= target < source <= source + count <= self.slots
        super().move(source, target, count)

    def alone(self, block: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The definition: affinities of a block without slots."""
        return self._affinities(self._features(block), block)

    def describe(self) -> dict[str, Any]:
        return {"backend": self.name, "precision": self.precision}

    def _features(self, gray: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        wide = gray.astype(np.int64)
        return 3 * wide + 5 * np.roll(wide, 1, 1) + 7 * np.roll(wide, 1, 2) + wide.sum((1, 2), keepdims=True)

    def _affinities(self, features: npt.NDArray[np.int64], gray: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        places = np.arange(1, features[0].size * len(features) + 1).reshape(features.shape)
        mixed = features * places + (features * places).sum(0) + gray
        return np.stack([mixed % 251, mixed % 253 + 1, mixed % 256]).astype(np.uint8)


@pytest.fixture(scope="session")
def slot_runner() -> type[SlotRunner]:
    """The class, for tests that make runners of their own."""
    return SlotRunner


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """One thread for PyTorch, as a loaded machine needs it: threads that wait for each other spin.

    Numba's threads share OpenMP with PyTorch, so synthetic tissue made before has set as many as there are cores.
    """
    torch = pytest.importorskip("torch", reason="the network needs the extra fgnet[train]")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_runtest_setup() -> None:
    """Keep PyTorch's DataLoader from handling SIGCHLD for the rest of the process.

    Compilers that other tests load leave a signal stack behind that is no longer there, and Python's handlers run on
    it: the next child that ends would end this process.
    """
    handling = sys.modules.get("torch.utils.data._utils.signal_handling")
    if handling is not None:
        handling._SIGCHLD_handler_set = True  # type: ignore[attr-defined]
