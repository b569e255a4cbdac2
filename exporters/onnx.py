"""Export a torch module to ONNX with a true opset 17, a dynamic batch, and names as specified.

The TorchScript-based exporter is used (`dynamo=False`): it gives opset 17 as asked.  Only where it fails,
`dynamo=True` and a repair are tried (`tsexport.exporters.onnx_dynamo`).  Either way the result is validated as a file
of unknown origin, and held against the module on fresh inputs and other batch sizes before anybody gets it.
"""

import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from tsexport.errors import ExportError, reason_of
from tsexport.exporters.capture import captured_stdout
from tsexport.exporters.formats import EXPORT_FORMATS
from tsexport.exporters.onnx_cleanup import remove_identities, state_output_shapes, strip_traces
from tsexport.exporters.onnx_external import external_tensors, externalize, is_large, open_model
from tsexport.exporters.onnx_file import OPSET, finish_onnx, ort_run, serialize, validate_onnx
from tsexport.exporters.tracing import (
    evaluating,
    example_tensors,
    first_departing_layer,
    mha_fastpath,
    prove_equal,
    require_repeatable,
    tracer_caveats,
)
from tsexport.runtimes.comparison import TOLERANCES
from tsexport.types import Artifact, Feeds, ModelSpec

__all__ = ["export_onnx", "finish_onnx"]


def export_onnx(module: nn.Module, spec: ModelSpec, feeds: Feeds, path: Path, *, name: str = "onnx-fp32") -> Artifact:
    """Export `module` to `path`; the same module gives the same bytes.

    Args:
        module: takes tensors in the order of `spec.inputs`, returns a tensor or a tuple in that of `spec.outputs`.
        feeds: example inputs by name, [batch, ...].
        path: the file to write (`.onnx`).

    Raises:
        ExportError: no exporter can hold the module in opset 17, it is random in eval mode, or fails at other batches.
        ParityError: the file answers otherwise than the module.
        FeedError: the feeds do not fit the specification.
    """
    tensors = example_tensors(spec, feeds)
    path.parent.mkdir(parents=True, exist_ok=True)
    with evaluating(module), tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        require_repeatable(module, spec, feeds)
        # the fast path's fused operator has no ONNX counterpart
        with mha_fastpath(False):
            model, provenance, caveats = _convert(module, spec, tensors, Path(folder))
        removed = remove_identities(model)
        strip_traces(model)
        state_output_shapes(model, spec)
        validate_onnx(model, spec)
        prove_equal(
            module,
            spec,
            feeds,
            lambda fresh: ort_run(model, fresh),
            TOLERANCES[EXPORT_FORMATS["onnx"].tolerance],
            what="the ONNX export",
            calls=2,
            caveats=caveats,
            locate=lambda missed: _first_departing_layer(module, spec, model, missed),
        )
        if removed:
            provenance += (f"{removed} Identity nodes removed",)
        return finish_onnx(model, spec, path, (*provenance, *(f"caveat: {c}" for c in caveats)), name=name)


def graph_of(module: nn.Module, spec: ModelSpec, feeds: Feeds, folder: Path) -> onnx.ModelProto:
    """Return what the exporter gives for a module in evaluation mode, neither checked nor compared with the module.

    Args:
        folder: gets the weights of a model that is too large for one file.

    Raises:
        ExportError: no exporter can hold the module in opset 17.
    """
    return _convert(module, spec, example_tensors(spec, feeds), folder)[0]


def _first_departing_layer(module: nn.Module, spec: ModelSpec, model: onnx.ModelProto, missed: Feeds) -> str:
    if external_tensors(model):
        return "the first layer was not looked for: the weights are too many for one file"
    return first_departing_layer(module, spec, "onnx", serialize(model), missed)


def _convert(
    module: nn.Module, spec: ModelSpec, tensors: tuple[torch.Tensor, ...], folder: Path
) -> tuple[onnx.ModelProto, tuple[str, ...], tuple[str, ...]]:
    """Return the model, what was done, and caveats; the weights of a large one lie in `folder`."""
    model, provenance, caveats = _export(module, spec, tensors, folder)
    if is_large(model) and not external_tensors(model):
        externalize(model, folder / "weights")
    return model, provenance, caveats


def _export(
    module: nn.Module, spec: ModelSpec, tensors: tuple[torch.Tensor, ...], folder: Path
) -> tuple[onnx.ModelProto, tuple[str, ...], tuple[str, ...]]:
    version = str(torch.__version__).split("+")[0]
    try:
        model, caveats = _export_from_trace(module, spec, tensors, folder)
        return model, (f"torch.onnx.export(dynamo=False, opset_version={OPSET}), torch {version}",), caveats
    except ExportError as first:
        # imported here: it brings onnxscript along, which takes two seconds
        from tsexport.exporters.onnx_dynamo import export_with_dynamo

        try:
            model, repairs = export_with_dynamo(module, spec, tensors)
        except ExportError as second:
            raise ExportError(
                f"{spec.name!r} cannot be exported to ONNX opset {OPSET}. With dynamo=False: {first.message}. "
                f"With dynamo=True: {second.message}",
                next_step="Replace the operation that is named, or leave ONNX out with --formats torchscript.",
            ) from second
        steps = (
            f"torch.onnx.export(dynamo=True), torch {version}, since dynamo=False failed: {first.message}",
            f"brought from opset 18 to {OPSET}" + "".join(f"; {repair}" for repair in repairs),
        )
        return model, steps, ()


def _export_from_trace(
    module: nn.Module, spec: ModelSpec, tensors: tuple[torch.Tensor, ...], folder: Path
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    path = folder / "model.onnx"  # over 2 GiB, the exporter writes every weight to a file of its own beside it
    dynamic = {
        tensor.name: {0: tensor.shape[0]}
        for tensor in (*spec.inputs, *spec.outputs)
        if tensor.shape and isinstance(tensor.shape[0], str)
    }
    with warnings.catch_warnings(record=True) as caught, captured_stdout():
        # Recorded, not shown.  The exporter is deprecated as a whole, and warns that an LSTM may not run at other batch
        # sizes, which is proven afterwards; the tracer's warnings are judged below.
        warnings.simplefilter("always")
        try:
            torch.onnx.export(
                module,
                tensors,
                str(path),  # of a Path it takes no notice, and fails over 2 GiB
                dynamo=False,
                opset_version=OPSET,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                dynamic_axes=dynamic,
            )
        except Exception as error:  # RuntimeError, torch.onnx.errors and whatever symbolic functions raise
            raise ExportError(reason_of(error)) from error
    return open_model(path), tracer_caveats(caught)
