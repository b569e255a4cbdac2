"""OpenVINO on its CPU plugin, from IR (.xml and .bin) or from ONNX.

The inference precision is stated at every load: without it OpenVINO computes an fp32 model in bf16 on CPUs that can, so
that parity would hold on one machine and fail on another.  Static shapes are worth about 1.5x, so the batch is fixed by
reshaping the model before it is compiled.  Nothing here sends telemetry: only OpenVINO's converter does, and reading
and compiling do not call it.
"""

import functools
import threading
from collections.abc import Mapping, Sequence

import openvino

from tsexport.errors import ConfigurationError
from tsexport.runtimes.options import own_options
from tsexport.runtimes.sessions import BatchSpecialised, Infer
from tsexport.types import Array, Artifact

_DECIDED_AT_LOAD = ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT")
_PRECISION = "INFERENCE_PRECISION_HINT"


class OpenVinoSession(BatchSpecialised):
    """An OpenVINO IR or an ONNX file in OpenVINO."""

    runtime = "openvino"
    failures = (RuntimeError,)  # also the base of its own GeneralFailure and NotImplementedFailure

    def _compile(self, batch: int | None) -> Infer:
        model = _core().read_model(self.artifact.path)
        self.require_names("input", self.inputs, [name for port in model.inputs for name in port.get_names()])
        self.require_names("output", self.outputs, [name for port in model.outputs for name in port.get_names()])
        if batch is not None:
            model.reshape({spec.name: list(spec.with_batch(batch)) for spec in self.inputs})
        compiled = _core().compile_model(model, "CPU", properties(self.artifact, threads=self.threads))
        request = compiled.create_infer_request()
        ports = [compiled.output(spec.name) for spec in self.outputs]
        lock = threading.Lock()  # a request runs one inference at a time

        def infer_dynamic(feeds: Mapping[str, Array]) -> Sequence[Array]:
            with lock:
                # Inputs are read in place; outputs are copied out, since the request writes over them at the next call.
                results = request.infer(dict(feeds), share_inputs=True, share_outputs=False)
                return [results[port] for port in ports]

        if any(port.get_partial_shape().is_dynamic for port in (*compiled.inputs, *compiled.outputs)):
            return infer_dynamic
        # Where every shape is fixed the request's own tensors stay: writing into them and copying out of them is half
        # of a small model's call faster than what openvino's Python does to bring any kind of feeds into form.
        filled = [(spec.name, request.get_tensor(compiled.input(spec.name)).data) for spec in self.inputs]

        def infer(feeds: Mapping[str, Array]) -> Sequence[Array]:
            with lock:
                for name, view in filled:
                    view[...] = feeds[name]
                request.infer()
                return [request.get_tensor(port).data.copy() for port in ports]

        return infer


@functools.cache
def _core() -> openvino.Core:
    """One core for the process: it loads the plugin once.  Settings go with each model, never here."""
    return openvino.Core()


def properties(artifact: Artifact, *, threads: int) -> dict[str, str]:
    """Return OpenVINO's properties for an artifact.

    Raises:
        ConfigurationError: an option that is decided at load, or bf16 arithmetic for a floating-point artifact of
            another precision.
    """
    options = own_options(artifact, OpenVinoSession.runtime)
    for key in _DECIDED_AT_LOAD:
        if key in options:
            raise ConfigurationError(
                f"artifact {artifact.name} has the option {key}, which is decided when it is loaded"
            )
    stated = "bf16" if artifact.precision == "bf16" else "f32"
    # An int8 artifact may state bf16 for what is left in floating point; an fp32 one must be what it says.
    if options.get(_PRECISION, stated) != stated and artifact.precision != "int8":
        raise ConfigurationError(
            f"artifact {artifact.name} is {artifact.precision} and has the option {_PRECISION}={options[_PRECISION]}; "
            f"allowed is {stated}"
        )
    return {
        _PRECISION: stated,
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
        # Pinning puts the threads of every model and every process on the same first cores (measured on a busy machine,
        # two threads: the same median without it, a seventh of the p90).
        "ENABLE_CPU_PINNING": "NO",
        **options,
    }
