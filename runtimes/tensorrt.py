"""TensorRT on the current CUDA device, from ONNX; versions 8.6 to 11.

Written against the documented Python API of those versions.  An engine is built at load, or taken from the cache where
one of this file, this TensorRT, this GPU and this driver lies there (`tensorrt_cache`).  Its optimization profile
begins at batch 1, is tuned for the first of the artifact's `tensorrt.batches` and ends at the largest; a batch beyond
it builds another engine, which takes as long as the first.  Feeds are copied to the device and answers back at every
call, which a figure of latency here therefore includes.
"""

import threading
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorrt

from tsexport.errors import UsageError
from tsexport.runtimes.options import tensorrt_batches
from tsexport.runtimes.sessions import ArtifactSession, Infer
from tsexport.runtimes.tensorrt_cache import (
    EngineRequest,
    cache_folder,
    engine_folder,
    read_engine,
    read_timing_cache,
    timing_cache_path,
    write_engine,
    write_file,
)
from tsexport.runtimes.tensorrt_engine import Complaints, TensorRtFailure, build_engine, make_logger
from tsexport.runtimes.tensorrt_memory import CudaFailure, DeviceBuffer, Stream, device_bytes, gpu_facts
from tsexport.runtimes.tensorrt_plan import (
    batches_with,
    device_dtype,
    plan_build,
    plan_profile,
    to_device,
    workspace_bytes,
)
from tsexport.types import Array, Artifact, TensorSpec, files_sha256


class TensorRtSession(ArtifactSession):
    """An ONNX file as a TensorRT engine.  `threads` is 1: the device computes."""

    runtime = "tensorrt"
    failures = (TensorRtFailure, CudaFailure, RuntimeError)  # the bindings raise RuntimeError

    def __init__(self, artifact: Artifact, threads: int, trt: types.ModuleType = tensorrt) -> None:
        super().__init__(artifact, 1)
        self._trt = trt
        self._lock = threading.RLock()  # an execution context runs one inference at a time
        self._loaded: _LoadedEngine | None = None
        self.built_because = ""
        try:
            self._load(tensorrt_batches(artifact))
        except self.failures as error:
            raise self.cannot_load(error) from error

    def _load(self, batches: Sequence[int]) -> None:
        engine = self._engine(batches)
        self._release()
        self._loaded = _LoadedEngine(self._trt, engine, self.artifact, max(batches))

    def _engine(self, batches: Sequence[int]) -> bytes:
        """Return the engine for some batches, from the cache or built; `built_because` says why it was built."""
        plan = plan_build(self._trt.__version__, self.artifact.precision)
        profile = plan_profile(self.inputs, batches)
        wanted = EngineRequest(
            onnx_sha256=files_sha256(self.artifact.files),
            tensorrt=self._trt.__version__,
            gpu=gpu_facts(),
            precision=self.artifact.precision,
            flags=(*plan.network, *plan.set, *(f"-{name}" for name in plan.cleared)),
            profile=tuple(map(str, profile)),
            workspace_bytes=workspace_bytes(device_bytes()),
        )
        root = cache_folder()
        folder, timing = engine_folder(root, wanted), timing_cache_path(root, wanted)
        try:
            return read_engine(folder, wanted)
        except UsageError as refusal:
            self.built_because = refusal.message
        started = time.perf_counter()
        before = read_timing_cache(timing)
        built = build_engine(self._trt, self.artifact.path, plan, profile, wanted.workspace_bytes, before)
        write_engine(folder, wanted, built.engine, time.perf_counter() - started)
        if built.timing_cache and built.timing_cache != before:
            write_file(timing, built.timing_cache)
        return built.engine

    def _infer_for(self, batch: int | None) -> Infer:
        def infer(feeds: Mapping[str, Array]) -> Sequence[Array]:
            with self._lock:
                if self._loaded is None:
                    raise TensorRtFailure("the session is closed")
                if batch is not None and batch > self._loaded.largest_batch:
                    self._load(batches_with(tensorrt_batches(self.artifact), batch))
                return self._loaded.run(feeds)

        return infer

    def _release(self) -> None:
        with self._lock:
            if self._loaded is not None:
                self._loaded.free()
            self._loaded = None


class _LoadedEngine:
    """An engine on the device, its execution context, and a buffer for each tensor."""

    def __init__(self, trt: types.ModuleType, engine: bytes, artifact: Artifact, largest_batch: int) -> None:
        self.largest_batch = largest_batch
        self._inputs, self._outputs = artifact.inputs, artifact.outputs
        self._logger, self._complaints = make_logger(trt)
        self._runtime = trt.Runtime(self._logger)  # must outlive the engine
        self._engine = _given(self._runtime.deserialize_cuda_engine(engine), "engine", self._complaints)
        self._context = _given(self._engine.create_execution_context(), "execution context", self._complaints)
        self._dtypes = {spec.name: self._dtype(trt, spec) for spec in (*self._inputs, *self._outputs)}
        self._buffers = {name: DeviceBuffer() for name in self._dtypes}
        self._stream = Stream()

    def _dtype(self, trt: types.ModuleType, spec: TensorSpec) -> str:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        if spec.name not in names:
            raise TensorRtFailure(f"the engine has no tensor {spec.name!r}; it has {', '.join(names)}")
        if self._engine.get_tensor_location(spec.name) != trt.TensorLocation.DEVICE:
            raise TensorRtFailure(f"{spec.name!r} gives a shape, which lies in the host's memory; needed are values")
        return device_dtype(spec, self._engine.get_tensor_dtype(spec.name).name)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs in the artifact's order, as arrays of their own."""
        given = []  # kept until the stream is done: copies read them meanwhile
        for spec in self._inputs:
            array = to_device(spec.name, feeds[spec.name], self._dtypes[spec.name])
            given.append(array)
            if not self._context.set_input_shape(spec.name, array.shape):
                raise TensorRtFailure(f"the shape {array.shape} of {spec.name!r}: {self._complaints.take()}")
            self._stream.copy_in(self._place(spec.name, array), array)
        found = [self._empty(spec) for spec in self._outputs]
        if not self._context.execute_async_v3(self._stream.handle):
            raise TensorRtFailure(self._complaints.take())
        for spec, array in zip(self._outputs, found, strict=True):
            self._stream.copy_out(array, self._buffers[spec.name].address)
        self._stream.synchronize()
        return [array.astype(spec.dtype, copy=False) for spec, array in zip(self._outputs, found, strict=True)]

    def _empty(self, spec: TensorSpec) -> Array:
        """Return the array that an output will be copied into, with its place on the device set."""
        shape = tuple(self._context.get_tensor_shape(spec.name))
        if any(dim < 0 for dim in shape):
            raise TensorRtFailure(f"the shape of {spec.name!r} depends on values; needed is one that the batch gives")
        array = np.empty(shape, self._dtypes[spec.name])
        self._place(spec.name, array)
        return array

    def _place(self, name: str, array: Array) -> int:
        """Return the address of a tensor on the device, large enough for an array, and told to the context."""
        address = self._buffers[name].reserve(array.nbytes)
        if not self._context.set_tensor_address(name, address):
            raise TensorRtFailure(f"the address of {name!r} is refused: {self._complaints.take()}")
        return address

    def free(self) -> None:
        """Give back the device's memory: the context first, then what it used."""
        self._stream.synchronize()
        del self._context, self._engine, self._runtime
        for buffer in self._buffers.values():
            buffer.free()
        self._stream.free()


def _given(made: Any, what: str, complaints: Complaints) -> Any:
    if made is None:
        raise TensorRtFailure(f"TensorRT gives no {what}: {complaints.take()}")
    return made
