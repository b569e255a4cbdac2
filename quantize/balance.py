"""What this machine sustains: multiply-accumulates a second in fp32 and in 8-bit integers, and bytes a second.

Measured with the kernels that artifacts are computed with: one product of two 512 x 512 matrices in ONNX Runtime, in
fp32 and as U8 by S8; and with a copy on one thread, of 64 MB, which no cache holds, and of 256 kB, which one does.  The
best of several counts, since whatever else runs here only takes away.  It is what a roofline needs, not a claim about
the machine:

    least time = max(MACs / MACs a second, bytes / bytes a second)

Source: S. Williams et al., "Roofline: an insightful visual performance model", 2009.
"""

import time
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tsexport.bench.records import Balance
from tsexport.types import Array

SIDE = 512
COPIED_BYTES = 2**26
CACHED_BYTES = 2**18
REPEATS = 7


def measure_balance(threads: int) -> Balance:
    """Measure for a fraction of a second; products run on `threads` threads."""
    generator = np.random.default_rng(0)
    single = generator.standard_normal((SIDE, SIDE)).astype(np.float32)
    small = generator.integers(-64, 64, (SIDE, SIDE))  # 7 bits: nothing saturates
    unsigned, signed = (small + 64).astype(np.uint8), small.astype(np.int8)
    gmacs = SIDE**3 / 1e9
    return Balance(
        threads=threads,
        fp32_gmacs_per_s=gmacs / _best(_product("MatMul", single, single, threads)),
        int8_gmacs_per_s=gmacs / _best(_product("MatMulInteger", unsigned, signed, threads)),
        copy_gb_per_s=_copied_gb_per_s(COPIED_BYTES),
        cached_copy_gb_per_s=_copied_gb_per_s(CACHED_BYTES),
    )


def _copied_gb_per_s(size_bytes: int) -> float:
    source = np.ones(size_bytes // 4, np.float32)
    target = np.empty_like(source)
    return 2 * size_bytes / 1e9 / _best(lambda: np.copyto(target, source))  # read and written


def _product(operator: str, left: Array, right: Array, threads: int) -> Callable[[], object]:
    of_left = helper.np_dtype_to_tensor_dtype(left.dtype)
    of_result = TensorProto.FLOAT if operator == "MatMul" else TensorProto.INT32
    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["result"])],
        "product",
        [helper.make_tensor_value_info("left", of_left, left.shape)],
        [helper.make_tensor_value_info("result", of_result, left.shape)],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"left": left})


def _best(call: Callable[[], object]) -> float:
    """Return the least seconds of a call."""
    call()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
