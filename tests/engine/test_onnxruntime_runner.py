"""What is particular to ONNX Runtime: which providers it has, and what it computes on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fgnet.engine.backends import Choice, open_runner
from fgnet.engine.bundle import Bundle, load_bundle
from fgnet.engine.cuda_memory import open_cuda
from fgnet.engine.onnxruntime_runner import OnnxRuntimeRunner
from fgnet.engine.onnxruntime_session import features_of, open_session
from fgnet.volumes.errors import BackendError, BundleError


def _lacks(provider: str) -> bool:
    import onnxruntime

    return provider not in onnxruntime.get_available_providers()


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider"])
@pytest.mark.parametrize("with_options", [False, True])
def test_a_provider_that_this_onnxruntime_lacks_is_refused_with_those_that_it_has(
    tiny_bundle: Path, provider: str, with_options: bool
) -> None:
    if not _lacks(provider):
        pytest.skip(f"this ONNX Runtime has {provider}")
    wanted = (provider, {"device_id": "0"}) if with_options else provider
    with pytest.raises(BackendError, match=rf"has no {provider}, only .*CPUExecutionProvider") as caught:
        open_session(tiny_bundle / "decoder.onnx", [wanted, "CPUExecutionProvider"], 1)
    assert "fgnet[gpu]" in str(caught.value)


def test_a_provider_that_does_not_start_is_refused_with_the_cause_and_prints_nothing(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Left to itself, ONNX Runtime prints that and takes another provider. With `--json`, stdout holds nothing else."""
    import onnxruntime

    if _lacks(provider := "AzureExecutionProvider"):
        pytest.skip(f"this ONNX Runtime has no {provider}")

    def fail(*_: object) -> None:
        raise RuntimeError("libnvinfer.so.10 is missing\nand a trace")

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    with pytest.raises(BackendError, match=rf"{provider} .*does not start \(libnvinfer.so.10 is missing\) "):
        open_session(tiny_bundle / "decoder.onnx", [provider, "CPUExecutionProvider"], 1)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("backend", ["onnxruntime", "onnxruntime-tensorrt"])
def test_a_gpu_that_is_not_there_is_an_error_in_one_line(tiny_bundle: Path, backend: str) -> None:
    try:
        open_cuda().close()
    except BackendError:
        bundle = load_bundle(tiny_bundle)
        with pytest.raises(BackendError) as caught:
            open_runner(Choice(backend, "fp32", "cuda", ""), bundle, lambda _: None)  # type: ignore[arg-type,return-value]
        assert "\n" not in str(caught.value)
    else:
        pytest.skip("there is a GPU")


def test_bf16_is_refused_on_the_cpu_with_what_computes_it(precise: Bundle) -> None:
    with pytest.raises(BackendError, match=r"computes no bfloat16 on the CPU .*--backend openvino"):
        OnnxRuntimeRunner(precise, precision="bf16")


@pytest.mark.parametrize("precision", ["fp16", "int8", "bf16"])
def test_a_precision_that_the_bundle_lacks_is_refused(tiny_bundle: Path, precision: str) -> None:
    with pytest.raises(BundleError, match=f"no graphs of precision {precision}, only fp32"):
        OnnxRuntimeRunner(load_bundle(tiny_bundle), precision=precision)  # type: ignore[arg-type]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", np.float32), ("fp16", np.float16)])
def test_features_travel_in_the_precision_of_the_graphs(precise: Bundle, precision: str, dtype: type) -> None:
    graphs = precise.graphs(precision)  # type: ignore[arg-type]
    assert graphs.encoder is not None
    encoder, decoder = (
        open_session(precise.path / name, ["CPUExecutionProvider"], 1) for name in (graphs.encoder, graphs.decoder)
    )
    features = features_of(precise, graphs, encoder, decoder)
    assert features
    for feature in features.values():
        assert feature.dtype == dtype
        assert feature.bytes == np.zeros(feature.shape, dtype).nbytes
