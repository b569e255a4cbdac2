"""Adopt an ONNX file that a user brings: kept where it is opset 17, converted where that can be proven.

A conversion is kept only if ONNX Runtime gives the same answers before and after; otherwise the file keeps its own
opset, and the artifact's provenance says why.
"""

from pathlib import Path

import onnx
from onnx import version_converter

from tsexport.errors import ExportError
from tsexport.exporters.artifacts import write_atomically
from tsexport.exporters.onnx_external import external_tensors, is_large, open_model
from tsexport.exporters.onnx_file import (
    IR_VERSION,
    OPSET,
    check_graph,
    check_tensors,
    default_opset,
    describe_onnx,
    one_line,
    ort_run,
    serialize,
    tensor_spec,
    validate_onnx,
    validate_runs,
    write_onnx,
)
from tsexport.exporters.onnx_lowering import lower_to_opset17
from tsexport.runtimes.comparison import TOLERANCES, compare_outputs
from tsexport.types import Artifact, ModelSpec, random_feeds

_SEED = 17


def adopt_onnx(path: Path, spec: ModelSpec, out: Path, *, name: str = "onnx-fp32") -> Artifact:
    """Check the ONNX file at `path` against `spec` and write it to `out`, in opset 17 where it can be.

    The bytes stay as they are if the file is opset 17 and calls its leading dimension as `spec` does.  Weights in a
    second file are embedded unless they are too many; then they stay apart, and the model keeps its opset.

    Raises:
        ExportError: the file cannot be read, is not valid, does not run, has other tensors than `spec`, or refers to
        weights that do not lie beside it.
    """
    try:
        model = open_model(path)
        external, large = bool(external_tensors(model)), is_large(model)
        if external and not large:
            model = onnx.load(path)
    except ExportError:
        raise
    except Exception as error:  # protobuf, onnx and the operating system each raise their own
        raise ExportError(
            f"{path.name} cannot be read as an ONNX model: {one_line(error)}",
            next_step="Give a file that onnx.load reads; external data must lie beside it.",
        ) from error
    original = path.read_bytes()
    notes = [f"adopted from {path.name}, opset {default_opset(model)}, IR version {model.ir_version}"]
    if external:
        notes.append("external data kept in a second file" if large else "external data embedded")
    if renamed := _name_batch(model, spec):
        notes.append(f"leading dimension of {', '.join(renamed)} named as in the specification")
    for given, wanted in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
        check_tensors(given, wanted, spec.name)
    check_graph(model, spec)
    opset = default_opset(model)
    if external and large:
        validate_runs(model, spec)
        if opset != OPSET:
            notes.append(f"kept in opset {opset}: its weights are too many to convert it")
        files = write_onnx(model, out, name)
        return describe_onnx(files, spec, tuple(notes), name=name, precision="fp32", opset=opset)
    data = serialize(model) if external or renamed else original
    validate_runs(data, spec)
    if opset != OPSET:
        converted, note = _convert(model, data, spec)
        notes.append(note)
        if converted is not None:
            data, opset = converted, OPSET
    write_atomically(out, data)
    return describe_onnx((out,), spec, tuple(notes), name=name, precision="fp32", opset=opset)


def _name_batch(model: onnx.ModelProto, spec: ModelSpec) -> list[str]:
    """Name symbolic leading dimensions as `spec` does; return the tensors that were called otherwise."""
    renamed = []
    for infos, wanted in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
        for info, tensor in zip(infos, wanted, strict=False):
            given = tensor_spec(info)
            both_symbolic = given.shape and tensor.shape and not isinstance(given.shape[0], int)
            if both_symbolic and isinstance(tensor.shape[0], str) and given.shape[0] != tensor.shape[0]:
                info.type.tensor_type.shape.dim[0].dim_param = tensor.shape[0]
                renamed.append(info.name)
    return renamed


def _convert(model: onnx.ModelProto, data: bytes, spec: ModelSpec) -> tuple[bytes | None, str]:
    """Return the model in opset 17 as bytes, or None, and a sentence for the provenance."""
    before = default_opset(model)
    own = sorted({entry.domain for entry in model.opset_import} - {"", "ai.onnx"})
    if own:
        return None, f"kept in opset {before}: it uses operators of {', '.join(own)}"
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    try:
        if before == OPSET + 1:
            lower_to_opset17(converted)
        else:
            converted = version_converter.convert_version(converted, OPSET)
            converted.ir_version = IR_VERSION
        validate_onnx(converted, spec)
        changed = serialize(converted)
        validate_runs(changed, spec)
    except ExportError as error:
        return None, f"kept in opset {before}: {error.message}"
    except Exception as error:  # the converter raises RuntimeError, ValueError and its own ConvertError
        return None, f"kept in opset {before}: onnx.version_converter: {one_line(error)}"
    feeds = random_feeds(
        spec.inputs, 2 if isinstance(spec.inputs[0].shape[0], str) else int(spec.inputs[0].shape[0]), _SEED
    )
    comparisons = compare_outputs(
        ort_run(data, feeds), ort_run(changed, feeds), TOLERANCES["fp32-same-math"], scaled=True
    )
    missed = [c for c in comparisons if not c.passed]
    if missed:
        return None, f"kept in opset {before}: converted to {OPSET} it answers otherwise in {missed[0].output!r}"
    return changed, f"converted from opset {before} to {OPSET}, same answers in ONNX Runtime"
