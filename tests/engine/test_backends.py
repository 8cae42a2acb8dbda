"""Which backend and precision is chosen, given what is installed, what the bundle holds and what its export proved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fgnet.engine import backends
from fgnet.engine.backends import BACKENDS, Choice, choices_for, choose_backend, open_first, open_runner
from fgnet.engine.bundle import Bundle, BundleManifest, Graphs, Precision
from fgnet.volumes.errors import BackendError, BundleError

CPU_ONLY = {"onnxruntime", "openvino", "torch", "torch-compile"}

Installed = Callable[..., None]


def bundle(*held: Precision, proved: str = "", refuted: str = "", checkpoint: str | None = "a.pt") -> Bundle:
    """A bundle by the precisions that it holds, and what was compared: "openvino bf16, onnxruntime int8"."""
    reports = [
        {"backend": name.split()[0], "precision": name.split()[1], "passed": passed, "voi": 2.5, "voi_eager": 2.0}
        for names, passed in ((proved, True), (refuted, False))
        for name in filter(None, names.split(", "))
    ]
    return Bundle(
        Path("a.bundle"),
        BundleManifest(
            name="a",
            config={},
            patch=(4, 64, 64),
            stride=(2, 32, 32),
            voxel_sizes=(),
            files={},
            sections=2,
            graphs=tuple(Graphs(half, f"decoder.{half}.onnx", f"encoder.{half}.onnx") for half in held or ("fp32",)),
            checkpoint=checkpoint,
            parity=tuple(reports),
        ),
    )


def never(_: Bundle) -> Any:
    raise AssertionError("the eager network is not needed")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Says what is installed and which devices there are; a CPU with bfloat16 and everything for it by default."""

    def install(
        *names: str, gpu: bool = False, bf16: bool = True, providers: tuple[str, ...] = (), architecture: str = "sm89"
    ) -> None:
        class Installation:
            @staticmethod
            def get_available_providers() -> list[str]:
                return [f"{name}ExecutionProvider" for name in (*providers, "CPU")]

        monkeypatch.setattr(backends, "installed", lambda name: name in (names or CPU_ONLY))
        monkeypatch.setattr(backends, "gpu_present", lambda: gpu)
        monkeypatch.setattr(backends, "gpu_architecture", lambda: architecture)
        monkeypatch.setattr(backends, "open_library", lambda _: SimpleNamespace(architectures=("sm86", "sm89")))
        monkeypatch.setattr(backends, "computes_bf16", lambda: bf16)
        monkeypatch.setattr(backends, "import_onnxruntime", Installation)

    install()
    return install


def chosen(*arguments: Any, **options: Any) -> tuple[str, str, str]:
    choice = choose_backend(*arguments, **options)
    return choice.backend, choice.precision, choice.device


PROVED = "openvino bf16, openvino int8"


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (bundle("fp32"), "openvino fp32"),
        (bundle("fp32", proved="onnxruntime fp32, openvino fp32"), "openvino fp32"),
        (bundle("fp32", proved="openvino bf16"), "openvino bf16"),
        (bundle("fp32", refuted="openvino bf16"), "openvino fp32"),
        (bundle("fp32", "bf16"), "openvino fp32"),
        (bundle("bf16", proved="openvino bf16"), "openvino bf16"),
        (bundle("fp32", "int8"), "openvino fp32"),
        (bundle("fp32", "int8", proved="onnxruntime int8"), "openvino fp32"),
        (bundle("fp32", "int8", proved=PROVED), "openvino int8"),
        (bundle("fp32", proved=PROVED), "openvino bf16"),
        (bundle("fp32", "int8", proved="openvino bf16", refuted="openvino int8"), "openvino bf16"),
        (bundle("fp32", refuted="openvino fp32"), "onnxruntime fp32"),
        (bundle("fp16"), "onnxruntime fp16"),
        (bundle("fp16", refuted="onnxruntime fp16"), "torch fp32"),
        (bundle("int8"), "torch fp32"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_auto_takes_the_fastest_whose_coarse_rounding_was_proved(made: Bundle, expected: str) -> None:
    assert chosen(made) == (*expected.split(), "cpu")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["openvino", "onnxruntime", "torch"], "openvino"),
        (["openvino", "torch"], "openvino"),
        (["torch", "torch-compile"], "torch"),
        (["onnxruntime"], "onnxruntime"),
    ],
)
def test_auto_takes_what_is_installed(machine: Installed, names: list[str], expected: str) -> None:
    machine(*names)
    assert chosen(bundle()) == (expected, "fp32", "cpu")


def test_a_cpu_without_bfloat16_is_not_given_it(machine: Installed) -> None:
    machine(bf16=False)
    assert chosen(bundle("fp32", proved=PROVED)) == ("openvino", "fp32", "cpu")
    assert chosen(bundle("fp32", proved=PROVED), "openvino") == ("openvino", "fp32", "cpu")


@pytest.mark.parametrize(
    ("held", "asked", "expected"),
    [
        (["fp32"], "fp32", "openvino"),
        (["fp32", "fp16"], "fp16", "onnxruntime"),
        (["fp32", "bf16"], "bf16", "openvino"),
        (["fp32", "int8"], "int8", "openvino"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_a_precision_that_is_asked_for_runs_on_what_is_fastest_at_it(
    held: list[Precision], asked: Precision, expected: str
) -> None:
    assert chosen(bundle(*held, proved=PROVED), precision=asked) == (expected, asked, "cpu")


@pytest.mark.usefixtures("machine")
def test_an_unproved_precision_that_is_asked_for_is_left_to_pytorch_which_is_said() -> None:
    choice = choose_backend(bundle("fp32"), precision="bf16")
    assert (choice.backend, choice.precision) == ("torch", "bf16")
    assert "not proved" in choice.reason
    assert "were proved" in choose_backend(bundle("fp32")).reason


@pytest.mark.usefixtures("machine")
def test_int8_that_the_bundle_lacks_is_refused_with_what_it_holds() -> None:
    with pytest.raises(BundleError, match="no graphs of precision int8, only fp32, fp16"):
        choose_backend(bundle("fp32", "fp16"), precision="int8")


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_that_is_asked_for_is_taken_whatever_else_is_there(backend: str) -> None:
    assert choose_backend(bundle("fp32"), backend) == Choice(backend, "fp32", "cpu", "asked for")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("backend", "made", "expected"),
    [
        ("openvino", bundle("fp32", "int8", proved=PROVED), "int8"),
        ("openvino", bundle("fp32", proved=PROVED), "bf16"),
        ("openvino", bundle("fp32", refuted="openvino bf16"), "fp32"),
        ("onnxruntime", bundle("fp16", "fp32"), "fp32"),
        ("onnxruntime", bundle("fp16"), "fp16"),
        ("torch", bundle("fp16"), "fp32"),
        ("torch-compile", bundle("fp16"), "fp32"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_a_backend_that_is_asked_for_runs_at_its_best_proved_precision(
    backend: str, made: Bundle, expected: str
) -> None:
    assert chosen(made, backend) == (backend, expected, "cpu")


@pytest.mark.usefixtures("machine")
def test_what_the_export_found_wanting_is_refused_with_its_figures() -> None:
    made = bundle("fp32", "int8", refuted="openvino int8")
    with pytest.raises(BackendError, match=r"int8 is not offered.*VOI 2\.5, eager PyTorch's 2\.0") as caught:
        choose_backend(made, "openvino", precision="int8")
    assert caught.value.remedy == "choose --precision fp32"
    assert chosen(made, "onnxruntime", precision="int8") == ("onnxruntime", "int8", "cpu")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "tensorrt fp16 cuda"),
        ({"device": "cuda"}, "tensorrt fp16 cuda"),
        ({"precision": "fp32"}, "tensorrt fp32 cuda"),
        ({"device": "cpu"}, "openvino fp32 cpu"),
        ({"backend": "onnxruntime"}, "onnxruntime fp16 cuda"),
        ({"backend": "onnxruntime", "device": "cpu"}, "onnxruntime fp32 cpu"),
        ({"backend": "openvino"}, "openvino fp32 cpu"),
        ({"backend": "torch"}, "torch fp32 cuda"),
    ],
)
def test_a_gpu_is_used_where_there_is_one_in_half_precision(
    machine: Installed, options: dict[str, Any], expected: str
) -> None:
    machine("tensorrt", *CPU_ONLY, gpu=True, providers=("Tensorrt", "CUDA"))
    assert chosen(bundle("fp32", "fp16"), **options) == tuple(expected.split())


@pytest.mark.parametrize(
    ("names", "providers", "expected"),
    [
        (["tensorrt-rtx", "onnxruntime"], ("Tensorrt", "CUDA"), "tensorrt-rtx cuda"),
        (["onnxruntime"], ("Tensorrt", "CUDA"), "onnxruntime-tensorrt cuda"),
        (["onnxruntime"], ("CUDA",), "onnxruntime cuda"),
        (["onnxruntime"], (), "onnxruntime cpu"),
        (["openvino"], (), "openvino cpu"),
    ],
)
def test_a_gpu_is_left_alone_where_nothing_is_installed_for_it(
    machine: Installed, names: list[str], providers: tuple[str, ...], expected: str
) -> None:
    machine(*names, "onnxruntime-tensorrt", gpu=True, providers=providers)
    backend, _, device = chosen(bundle(checkpoint=None))
    assert f"{backend} {device}" == expected


def test_tensorrt_for_rtx_is_left_alone_on_gpus_that_it_does_not_build_for(machine: Installed) -> None:
    machine("tensorrt-rtx", "onnxruntime", gpu=True, providers=("CUDA",), architecture="sm90")
    assert chosen(bundle(checkpoint=None)) == ("onnxruntime", "fp32", "cuda")


def test_what_does_not_start_makes_room_for_the_next_which_is_said(
    machine: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("tensorrt", "onnxruntime", "openvino", gpu=True, providers=("CUDA",))
    opened, said = [], []

    def open_(choice: Choice, *_: Any, **__: Any) -> str:
        opened.append(choice.backend)
        if choice.device == "cuda":
            raise BackendError("no libcublas here", where=choice.backend)
        return "a runner"

    monkeypatch.setattr(backends, "open_runner", open_)
    monkeypatch.setattr(backends, "warm_up", lambda _: None)
    made = bundle(checkpoint=None)
    choice, runner = open_first(choices_for(made), made, never, say=said.append)
    assert opened == ["tensorrt", "onnxruntime", "openvino"]
    assert (choice.backend, choice.device, runner) == ("openvino", "cpu", "a runner")
    assert sum("no libcublas here" in line for line in said) == 2
    assert "openvino fp32" in said[-1]
    # Who asks for a device, or a backend, gets no other.
    opened.clear()
    with pytest.raises(BackendError, match="no libcublas"):
        open_first(choices_for(made, device="cuda"), made, never)
    with pytest.raises(BackendError, match="no libcublas"):
        open_first(choices_for(made, "tensorrt"), made, never)
    assert opened == ["tensorrt", "onnxruntime", "tensorrt"]


def test_what_fails_at_its_first_call_makes_room_too_and_is_closed(
    machine: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("onnxruntime", "openvino", gpu=True, providers=("CUDA",))
    closed: list[str] = []

    def warm_up(runner: Any) -> None:
        if runner.device == "cuda":
            raise BackendError("no memory is left", where=runner.backend)

    def open_(choice: Choice, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(
            backend=choice.backend, device=choice.device, close=lambda: closed.append(choice.backend)
        )

    monkeypatch.setattr(backends, "open_runner", open_)
    monkeypatch.setattr(backends, "warm_up", warm_up)
    made = bundle(checkpoint=None)
    choice, runner = open_first(choices_for(made), made, never)
    assert (choice.backend, closed) == ("openvino", ["onnxruntime"])
    assert vars(runner)["backend"] == "openvino"


@pytest.mark.parametrize(
    ("backend", "device", "message"),
    [
        ("auto", "cuda", "there is no NVIDIA GPU here, or no driver for it"),
        ("onnxruntime", "cuda", "there is no NVIDIA GPU here, or no driver for it"),
        ("tensorrt", "cuda", "there is no NVIDIA GPU here, or no driver for it"),
        ("torch", "cuda", "there is no NVIDIA GPU here, or no driver for it"),
        ("openvino", "cuda", "OpenVINO runs on no NVIDIA GPU"),
        ("tensorrt", "cpu", "tensorrt runs on NVIDIA GPUs only"),
        ("tensorrt-rtx", "cpu", "tensorrt-rtx runs on NVIDIA GPUs only"),
        ("onnxruntime-tensorrt", "cpu", "onnxruntime-tensorrt runs on NVIDIA GPUs only"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_a_device_that_is_missing_or_of_another_kind_is_refused(backend: str, device: Any, message: str) -> None:
    with pytest.raises(BackendError, match=message) as caught:
        choose_backend(bundle(), backend, device=device)
    assert caught.value.where == "--device"
    assert caught.value.remedy


def test_openvino_is_refused_a_gpu_even_where_there_is_one(machine: Installed) -> None:
    machine(gpu=True)
    with pytest.raises(BackendError, match="OpenVINO runs on no NVIDIA GPU"):
        choose_backend(bundle(), "openvino", device="cuda")


@pytest.mark.usefixtures("machine")
def test_an_unknown_backend_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(BackendError, match="there is no backend 'abacus'") as caught:
        choose_backend(bundle(), "abacus")
    assert all(name in str(caught.value) for name in BACKENDS)


@pytest.mark.parametrize(
    ("names", "made"),
    [
        (["tensorrt"], bundle("fp32")),
        (["torch"], bundle("fp32", checkpoint=None)),
        (["onnxruntime"], bundle("fp32", refuted="onnxruntime fp32")),
    ],
    ids=["not for this device", "no checkpoint", "found wanting"],
)
def test_auto_says_so_where_nothing_runs_the_bundle(machine: Installed, names: list[str], made: Bundle) -> None:
    machine(*names)
    with pytest.raises(BackendError, match="no backend is installed that runs this bundle") as caught:
        choose_backend(made)
    assert "pip install 'fgnet[cpu]'" in str(caught.value)


EXTRAS = {
    "tensorrt": "gpu",
    "tensorrt-rtx": "rtx",
    "onnxruntime-tensorrt": "gpu",
    "onnxruntime": "cpu",
    "openvino": "cpu",
    "torch-compile": "train",
    "torch": "train",
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_backend_opens_that_is_not_installed_and_each_says_what_to_install(machine: Installed, backend: Any) -> None:
    machine("nothing")
    with pytest.raises(BackendError, match="is not installed") as caught:
        open_runner(Choice(backend, "fp32", "cpu", ""), bundle(), never)
    assert caught.value.where == f"backend {backend}"
    assert caught.value.remedy == f"pip install 'fgnet[{EXTRAS[backend]}]'"


@pytest.mark.parametrize("backend", ["torch", "torch-compile"])
def test_pytorch_needs_the_checkpoint_in_the_bundle(backend: Any) -> None:
    def build(made: Bundle) -> Any:
        return made.checkpoint

    with pytest.raises(BundleError, match="holds no checkpoint"):
        open_runner(Choice(backend, "fp32", "cpu", ""), bundle(checkpoint=None), build)
