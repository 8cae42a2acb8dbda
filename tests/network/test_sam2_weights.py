"""Official SAM2.1 checkpoints load by name; anything else is refused with the list of keys."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fgnet.network.config import preset
from fgnet.network.encoder import SectionEncoder, build_image_encoder, load_sam2_weights
from fgnet.volumes.errors import CheckpointError


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    """The state dict of a whole SAM2.1 tiny, as `sam2.1_hiera_tiny.pt` holds it under `model`."""
    file = resources.files("sam2") / "configs" / "sam2.1" / "sam2.1_hiera_t.yaml"
    torch.manual_seed(5)
    model = instantiate(OmegaConf.create(file.read_text()).model)
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


@pytest.fixture(scope="module")
def image_encoder(official: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in official.items() if key.startswith("image_encoder.")}


@pytest.fixture
def encoder() -> SectionEncoder:
    torch.manual_seed(0)
    return SectionEncoder(preset("tiny"))


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def refusal(encoder: SectionEncoder, path: Path) -> str:
    """The message, after making sure that the encoder was not touched."""
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_sam2_weights(encoder, path)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    return str(caught.value)


def test_a_whole_sam2_checkpoint_loads_its_image_encoder(
    tmp_path: Path, encoder: SectionEncoder, official: dict[str, torch.Tensor]
) -> None:
    assert {key.split(".")[0] for key in official} > {"image_encoder", "memory_attention", "sam_mask_decoder"}
    load_sam2_weights(encoder, write(tmp_path / "sam2.1_hiera_tiny.pt", {"model": official}))
    loaded = encoder.image_encoder.state_dict()
    assert all(torch.equal(value, official[f"image_encoder.{key}"]) for key, value in loaded.items())


@pytest.mark.parametrize("depth", [3, 5])
def test_it_loads_whatever_levels_are_read(tmp_path: Path, depth: int, image_encoder: dict[str, torch.Tensor]) -> None:
    encoder = SectionEncoder(preset("tiny", depth=depth))
    load_sam2_weights(encoder, write(tmp_path / "sam2.pt", {"model": image_encoder}))
    key = "trunk.blocks.0.attn.qkv.weight"
    assert torch.equal(encoder.image_encoder.state_dict()[key], image_encoder[f"image_encoder.{key}"])


def test_a_partial_checkpoint_is_refused_listing_what_is_missing(
    tmp_path: Path, encoder: SectionEncoder, image_encoder: dict[str, torch.Tensor]
) -> None:
    gone = ["image_encoder.trunk.pos_embed", "image_encoder.neck.convs.0.conv.bias"]
    partial = {key: value for key, value in image_encoder.items() if key not in gone}
    message = refusal(encoder, write(tmp_path / "partial.pt", {"model": partial}))
    assert "partial.pt" in message
    assert "2 missing: neck.convs.0.conv.bias, trunk.pos_embed" in message


@pytest.mark.parametrize(
    ("variant", "key"),
    [("small", "unknown: trunk.blocks.12."), ("base_plus", "trunk.pos_embed_window (1, 112, 8, 8) for (1, 96, 8, 8)")],
)
def test_another_variant_is_refused_listing_the_keys(
    tmp_path: Path, encoder: SectionEncoder, variant: Any, key: str
) -> None:
    other = {f"image_encoder.{k}": v for k, v in build_image_encoder(variant).state_dict().items()}
    assert key in refusal(encoder, write(tmp_path / "other.pt", {"model": other}))


@pytest.mark.parametrize("content", [{"model": {"memory": torch.zeros(1)}}, {"model": 3}, {"weights": {}}, {1: 2}])
def test_a_file_without_an_image_encoder_is_refused(tmp_path: Path, encoder: SectionEncoder, content: Any) -> None:
    assert "image_encoder" in refusal(encoder, write(tmp_path / "none.pt", content))


def test_a_value_that_is_no_tensor_is_refused(
    tmp_path: Path, encoder: SectionEncoder, image_encoder: dict[str, torch.Tensor]
) -> None:
    changed = image_encoder | {"image_encoder.trunk.pos_embed": 3}
    assert "not a tensor: trunk.pos_embed" in refusal(encoder, write(tmp_path / "odd.pt", {"model": changed}))


def test_a_truncated_checkpoint_is_refused(
    tmp_path: Path, encoder: SectionEncoder, image_encoder: dict[str, torch.Tensor]
) -> None:
    path = write(tmp_path / "cut.pt", {"model": image_encoder})
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    assert "truncated" in refusal(encoder, path)


def test_a_checkpoint_that_needs_code_is_not_run(tmp_path: Path, encoder: SectionEncoder) -> None:
    trace = tmp_path / "trace"

    class Malice:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (trace,))

    assert "code" in refusal(encoder, write(tmp_path / "bad.pt", {"model": {"image_encoder.x": Malice()}}))
    assert not trace.exists()
