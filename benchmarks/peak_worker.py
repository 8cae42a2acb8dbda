"""What can this device do at most? A process that times short matrix products and copies: `python -m ...peak_worker`.

The order is a line of JSON on stdin, {"device", "precisions", "threads"}; the reply one on stdout: operations a second
by precision, bytes a second, and why a precision has no figure. How many threads the libraries of products take is told
by the environment, before the process starts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from fgnet.engine.bundle import Precision
from fgnet.engine.torch_runner import Device

# Side of the matrices: large enough to keep every unit busy, small enough for hundreds of products in half a second.
_SIDE: dict[Device, int] = {"cpu": 1024, "cuda": 8192}
# No cache holds it, and on a GPU what it takes to start the copy is little beside it.
_COPIED_BYTES: dict[Device, int] = {"cpu": 1 << 28, "cuda": 1 << 30}
_SECONDS = 0.4
_LEAST = 3


def main() -> None:
    """Take the order, time, reply."""
    order = json.loads(sys.stdin.readline())
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    operations: dict[str, float] = {}
    missing: dict[str, str] = {}
    for precision in order["precisions"]:
        try:
            multiply, side = _product(order["device"], precision), _SIDE[order["device"]]
            operations[precision] = 2 * side**3 / _least_seconds(multiply)
        # Without a GPU PyTorch for CPUs raises an AssertionError.
        except (ImportError, RuntimeError, ValueError, AssertionError) as error:
            missing[precision] = str(error).strip().splitlines()[0]
    copied = 2 * _COPIED_BYTES[order["device"]] / _least_seconds(_copy(order["device"], order["threads"]))
    json.dump({"operations": operations, "bytes": copied, "missing": missing}, replies)
    replies.close()


def _least_seconds(run: Callable[[], Any]) -> float:
    """Of many runs: what else the machine does only makes one longer."""
    run()
    seconds: list[float] = []
    until = time.perf_counter() + _SECONDS
    while len(seconds) < _LEAST or time.perf_counter() < until:
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _product(device: Device, precision: Precision) -> Callable[[], Any]:
    """A product of two square matrices.

    Raises:
        ImportError: the package that computes it is not installed.
        RuntimeError: nothing computes it here.
    """
    if device == "cpu" and precision == "fp32":
        left, right = np.random.default_rng(0).random((2, _SIDE["cpu"], _SIDE["cpu"]), dtype=np.float32)
        product = np.empty_like(left)
        return lambda: np.matmul(left, right, out=product)
    if precision == "int8":
        if device == "cuda":
            raise RuntimeError("no product of 8-bit integers on a GPU is at hand")
        return _integer_product(_SIDE["cpu"])
    import torch

    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    torch.backends.cuda.matmul.allow_tf32 = False
    first, second = torch.rand(2, _SIDE[device], _SIDE[device], device=device).to(kinds[precision])

    def multiply() -> None:
        torch.matmul(first, second)
        if device == "cuda":
            torch.cuda.synchronize()

    return multiply


def _integer_product(side: int) -> Callable[[], Any]:
    """8-bit integers into 32-bit sums, by ONNX Runtime on the CPU."""
    import onnxruntime
    from onnx import TensorProto, helper

    values = np.random.default_rng(0).integers(-100, 100, (side, side), dtype=np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", TensorProto.UINT8, [side, side])],
        [helper.make_tensor_value_info("product", TensorProto.INT32, [side, side])],
        [helper.make_tensor("right", TensorProto.INT8, [side, side], values.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    fed = {"left": values.view(np.uint8)}
    return lambda: session.run(None, fed)


def _copy(device: Device, threads: int) -> Callable[[], Any]:
    """A copy from memory to memory, on the CPU by so many threads."""
    if device == "cuda":
        import torch

        source = torch.ones(_COPIED_BYTES["cuda"], dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)

        def copy() -> None:
            target.copy_(source)
            torch.cuda.synchronize()

        return copy
    # Written, for memory that never was is not read from anywhere.
    pieces = [np.full((2, _COPIED_BYTES["cpu"] // threads), 1, np.uint8) for _ in range(threads)]
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda piece: np.copyto(piece[0], piece[1]), pieces))


if __name__ == "__main__":
    main()
