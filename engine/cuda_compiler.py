"""CUDA C made machine code for one GPU, by NVIDIA's run-time compiler (NVRTC); no GPU is needed for it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fgnet.volumes.errors import BackendError


def compile_kernels(source: str, capability: tuple[int, int]) -> bytes:
    """The machine code (cubin) of some kernels.

    Products and sums are not contracted, so that they round as on the CPU.

    Args:
        source: CUDA C without headers.
        capability: compute capability of the GPU, such as (8, 9).

    Raises:
        BackendError: NVRTC is not installed, does not know the GPU, or refuses the source.
    """
    nvrtc: Any = import_module("cuda.bindings.nvrtc")
    architecture = "sm_{}{}".format(*capability)
    try:
        status, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, None, None)
    except RuntimeError as error:  # what cuda-pathfinder raises where it finds no library
        raise BackendError(
            "NVRTC, which compiles CUDA kernels, is not installed",
            where="CUDA",
            remedy="pip install 'fgnet[gpu]', or nvidia-cuda-nvrtc-cu12 beside a cuda-bindings of version 12",
        ) from error
    _require(nvrtc, "nvrtcCreateProgram", status)
    try:
        options = [f"--gpu-architecture={architecture}".encode(), b"--fmad=false"]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = _text(nvrtc, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program)
            lines = log.decode(errors="replace").strip(" \n\0").splitlines()
            raise BackendError(
                f"NVRTC compiles no kernels for {architecture} ({lines[0] if lines else status.name})",
                where="CUDA",
                remedy="a newer GPU needs pip install --upgrade cuda-bindings nvidia-cuda-nvrtc; one below sm_75 needs "
                "version 12 of cuda-bindings, and nvidia-cuda-nvrtc-cu12",
            )
        return _text(nvrtc, "nvrtcGetCUBINSize", "nvrtcGetCUBIN", program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _text(nvrtc: Any, ask_size: str, ask: str, program: Any) -> bytes:
    status, size = getattr(nvrtc, ask_size)(program)
    _require(nvrtc, ask_size, status)
    text = bytes(size)
    (status,) = getattr(nvrtc, ask)(program, text)  # the bindings write into the bytes they are given
    _require(nvrtc, ask, status)
    return text


def _require(nvrtc: Any, function: str, status: Any) -> None:
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BackendError(f"{function} failed ({status.name})", where="CUDA")
