"""ONNX Runtime on its CPU execution provider.

All graph optimizations are on and operators run one after the other, each on `threads` threads, unless the artifact's
options say otherwise.  The batch is fixed by a free dimension override, under the symbols of the artifact's inputs.
"""

from collections.abc import Mapping, Sequence

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

from tsexport.errors import ConfigurationError, did_you_mean
from tsexport.runtimes.options import FIX_BATCH, GRAPH_OPTIMIZATION_LEVEL, own_options
from tsexport.runtimes.sessions import BatchSpecialised, Infer
from tsexport.types import Array, Artifact

_LEVELS = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_FATAL_ONLY = 4  # failures are raised as errors, so their log lines on stderr would say them twice


class OnnxRuntimeSession(BatchSpecialised):
    """An ONNX file in ONNX Runtime."""

    runtime = "onnxruntime"
    failures = tuple(  # one class a status code, and no common base but Exception
        value
        for value in vars(onnxruntime_pybind11_state).values()
        if isinstance(value, type) and issubclass(value, Exception)
    )

    def specialises(self, artifact: Artifact) -> bool:
        """A graph that computes no shapes gains nothing from a fixed batch; its artifact says so."""
        return own_options(artifact, self.runtime).get(FIX_BATCH) != "no"

    def _compile(self, batch: int | None) -> Infer:
        session = onnxruntime.InferenceSession(
            str(self.artifact.path),
            session_options(self.artifact, threads=self.threads, batch=batch),
            providers=["CPUExecutionProvider"],
        )
        self.require_names("input", self.inputs, [node.name for node in session.get_inputs()])
        self.require_names("output", self.outputs, [node.name for node in session.get_outputs()])
        names = [spec.name for spec in self.outputs]
        # InferenceSession.run looks at the names and values once more, in Python, before it calls the compiled session:
        # a tenth of a small model's call, for what is known here.
        run = getattr(session, "_sess", session).run

        def infer(feeds: Mapping[str, Array]) -> Sequence[Array]:
            outputs: Sequence[Array] = run(names, feeds, None)
            return outputs

        return infer


def session_options(artifact: Artifact, *, threads: int, batch: int | None) -> onnxruntime.SessionOptions:
    """Return ONNX Runtime's options for an artifact, with the batch fixed unless it is None.

    Raises:
        ConfigurationError: an unknown option, or an unknown optimization level.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = _LEVELS["all"]
    options.log_severity_level = _FATAL_ONLY
    for key, value in own_options(artifact, OnnxRuntimeSession.runtime).items():
        if key == GRAPH_OPTIMIZATION_LEVEL:
            if value not in _LEVELS:
                raise ConfigurationError(
                    f"{key} is {value!r}{did_you_mean(value, _LEVELS)}; allowed are {', '.join(_LEVELS)}"
                )
            options.graph_optimization_level = _LEVELS[value]
        elif key != FIX_BATCH:
            options.add_session_config_entry(key, value)
    if batch is not None:
        for symbol in {dim for spec in artifact.inputs for dim in spec.shape if isinstance(dim, str)}:
            options.add_free_dimension_override_by_name(symbol, batch)
    return options
