"""The CUDA calls of TensorRT's sessions: on a GPU, and what is said where there is none.  Needs `cuda-bindings`."""

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed: no CUDA call was run")
from tsexport.runtimes.tensorrt_memory import CudaFailure, DeviceBuffer, Stream, call, device_bytes, gpu_facts


def has_gpu() -> bool:
    try:
        call("cudaGetDevice")
    except CudaFailure:
        return False
    return True


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
@pytest.mark.parametrize("act", [gpu_facts, device_bytes, Stream, lambda: DeviceBuffer().reserve(8)])
def test_without_a_gpu_the_call_and_the_reason_are_named(act):
    with pytest.raises(CudaFailure, match=r"^cuda\w+: (no CUDA-capable device|CUDA driver version is insufficient)"):
        act()


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="there is no GPU")
def test_what_is_copied_in_comes_out():
    facts = gpu_facts()
    assert facts.name
    assert facts.driver
    assert device_bytes() > 10**9
    buffer, stream = DeviceBuffer(), Stream()
    sent = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    found = np.zeros_like(sent)
    address = buffer.reserve(sent.nbytes)
    assert buffer.reserve(4) == address
    stream.copy_in(address, sent)
    stream.copy_out(found, address)
    stream.synchronize()
    np.testing.assert_array_equal(found, sent)
    for _ in range(2):
        buffer.free()
        stream.free()
