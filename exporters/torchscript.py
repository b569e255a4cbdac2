"""Export a torch module to TorchScript by tracing, and prove the trace.

The module is traced in eval mode under `no_grad` with the fast path of `nn.TransformerEncoder` on.  `jit.trace`'s own
check is replaced by a stricter one: the file, loaded again, must answer as the module does on fresh inputs, at other
batch sizes, and on the first three calls.
"""

import io
import warnings
from pathlib import Path

import torch
from torch import nn

from tsexport.errors import ExportError, reason_of
from tsexport.exporters.artifacts import describe, write_atomically
from tsexport.exporters.formats import EXPORT_FORMATS
from tsexport.exporters.torchscript_archive import archive_bytes, fresh_compilation_unit
from tsexport.exporters.tracing import (
    evaluating,
    example_tensors,
    first_departing_layer,
    mha_fastpath,
    prove_equal,
    require_repeatable,
    run_module,
    tracer_caveats,
)
from tsexport.runtimes.comparison import TOLERANCES
from tsexport.types import Artifact, Feeds, ModelSpec, Precision

_CALLS = 4  # the profiling executor specializes within the first three; the fourth must equal the third


def export_torchscript(
    module: nn.Module,
    spec: ModelSpec,
    feeds: Feeds,
    path: Path,
    *,
    name: str = "torchscript-fp32",
    precision: Precision = "fp32",
    runtimes: tuple[str, ...] = EXPORT_FORMATS["torchscript"].runtimes,
) -> Artifact:
    """Trace `module` and write it to `path`; the same module gives the same bytes.

    Args:
        module: takes tensors in the order of `spec.inputs`, returns a tensor or a tuple in that of `spec.outputs`.
        feeds: example inputs by name, [batch, ...].
        path: the file to write (`.pt`).
        name, precision, runtimes: of the artifact; `precision` is what the module computes in.

    Raises:
        ExportError: the module cannot be traced, is random in eval mode, or its trace fails at another batch size.
        ParityError: the trace answers otherwise than the module.
        FeedError: the feeds do not fit the specification.
    """
    export_format = EXPORT_FORMATS["torchscript"]
    tensors = example_tensors(spec, feeds)
    with evaluating(module), mha_fastpath(True):
        require_repeatable(module, spec, feeds)
        data, caveats = _trace(module, spec, tensors)
        loaded = _load(data)
        prove_equal(
            module,
            spec,
            feeds,
            lambda fresh: run_module(loaded, spec, fresh),
            TOLERANCES[export_format.tolerance],
            what="the TorchScript trace",
            calls=_CALLS,
            caveats=caveats,
            locate=lambda missed: first_departing_layer(module, spec, "torchscript", data, missed),
        )
    write_atomically(path, data)
    provenance = (f"torch.jit.trace in eval mode under no_grad, torch {_version()}", *(f"caveat: {c}" for c in caveats))
    return describe((path,), "torchscript", spec, provenance, name=name, precision=precision, runtimes=runtimes)


def _trace(module: nn.Module, spec: ModelSpec, tensors: tuple[torch.Tensor, ...]) -> tuple[bytes, tuple[str, ...]]:
    with warnings.catch_warnings(record=True) as caught, fresh_compilation_unit():
        # recorded, not shown: tracer warnings are judged below, and tracing itself is deprecated as a whole
        warnings.simplefilter("always")
        try:
            # the inputs are not stored in the file; the trace is checked by prove_equal
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                module, tensors, check_trace=False, _store_inputs=False
            )
            data = archive_bytes(traced)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ExportError(
                f"{spec.name!r} cannot be traced to TorchScript: {reason_of(error)}",
                next_step="forward may take and return tensors and tuples of tensors only.",
            ) from error
    return data, tracer_caveats(caught)


def _load(data: bytes) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        # TorchScript is deprecated as a whole; it is the format that was asked for
        warnings.filterwarnings("ignore", message=".*torch.jit.load.*", category=DeprecationWarning)
        loaded: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
            io.BytesIO(data), map_location="cpu"
        )
    return loaded


def _version() -> str:
    return str(torch.__version__).split("+")[0]
