"""Fixtures that several rooms share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
