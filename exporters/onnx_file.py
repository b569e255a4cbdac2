"""Validate an ONNX model and write it: every `.onnx` artifact, exported or rewritten, passes here.

Exporters have given opset 18 when asked for 17, with a message on stderr only; so nothing that they say is believed,
and everything is read back from the model itself.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from tsexport.errors import ExportError
from tsexport.exporters.artifacts import describe, write_atomically
from tsexport.exporters.formats import EXPORT_FORMATS
from tsexport.exporters.onnx_cleanup import strip_traces
from tsexport.exporters.onnx_external import (
    check_model,
    create_session,
    external_tensors,
    externalize,
    is_large,
    relative_copy,
)
from tsexport.types import Array, Artifact, Feeds, ModelSpec, Precision, TensorSpec, random_feeds

OPSET = 17
IR_VERSION = 8
"""The IR version that belongs to opset 17: readers of that time refuse a later one."""
_DEFAULT_DOMAINS = ("", "ai.onnx")
_PROTOBUF_LIMIT_BYTES = 2**31 - 1
_SEED = 17


def finish_onnx(
    model: onnx.ModelProto,
    spec: ModelSpec,
    path: Path,
    provenance: tuple[str, ...],
    *,
    name: str = "onnx-fp32",
    precision: Precision = "fp32",
    domains: tuple[str, ...] = (),
) -> Artifact:
    """Validate `model`, write it to `path` and return the artifact; the same model gives the same bytes.

    Documentation strings and metadata are removed from `model` first.  Weights of a large one go into a
    second file, `name`.data beside it (see `tsexport.exporters.onnx_external`).

    Args:
        domains: operator domains beside ONNX's own that nodes may come from ("com.microsoft"); the artifact then runs
            only where they are known, so its `runtimes` are the caller's to state.

    Raises:
        ExportError: it is not a valid opset 17 model with the tensors of `spec` and a dynamic batch, or does not run.
    """
    strip_traces(model)
    validate_onnx(model, spec, domains)
    validate_runs(model, spec)
    files = write_onnx(model, path, name)
    return describe_onnx(files, spec, provenance, name=name, precision=precision, opset=OPSET)


def describe_onnx(
    files: tuple[Path, ...],
    spec: ModelSpec,
    provenance: tuple[str, ...],
    *,
    name: str,
    precision: Precision,
    opset: int,
) -> Artifact:
    """Return the record of an ONNX model on disk; `files[0]` is the .onnx file."""
    runtimes = EXPORT_FORMATS["onnx"].runtimes
    return describe(files, "onnx", spec, provenance, name=name, precision=precision, runtimes=runtimes, opset=opset)


def write_onnx(model: onnx.ModelProto, path: Path, name: str) -> tuple[Path, ...]:
    """Write a model to `path`, and the weights of a large one to `name`.data beside it; return the files.

    The second file is called after the artifact, as its files are in a bundle: the first one refers to it by name.
    """
    if not is_large(model) and not external_tensors(model):
        write_atomically(path, serialize(model))
        return (path,)
    data = path.with_name(f"{name}.data")
    externalize(model, data)  # weights first: an .onnx is never without them
    write_atomically(path, serialize(relative_copy(model)[0]))
    return (path, data)


def serialize(model: onnx.ModelProto) -> bytes:
    """Return the model's bytes, the same for the same model.

    Raises:
        ExportError: it is larger than the 2 GiB that one protobuf file holds.
    """
    if model.ByteSize() > _PROTOBUF_LIMIT_BYTES:
        raise ExportError(
            f"the ONNX model has {model.ByteSize():,} bytes, one file holds at most {_PROTOBUF_LIMIT_BYTES:,}",
            next_step="Leave ONNX out with --formats torchscript.",
        )
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def default_opset(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set that the model imports (0 if it imports none)."""
    return max((entry.version for entry in model.opset_import if entry.domain in _DEFAULT_DOMAINS), default=0)


def validate_onnx(model: onnx.ModelProto, spec: ModelSpec, domains: tuple[str, ...] = ()) -> None:
    """Check the model as it stands: opset 17, no domain but `domains`, IR version 8, the checker, names and shapes.

    Raises:
        ExportError: says which check failed and what was found.
    """
    imported = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if imported.get("ai.onnx") != OPSET or not imported.keys() <= {"ai.onnx", *domains}:
        found = ", ".join(f"{domain} {version}" for domain, version in imported.items()) or "none"
        allowed = f"with {' or '.join(domains)} beside it" if domains else "alone"
        raise ExportError(
            f"{spec.name!r} as ONNX imports the operator sets {found}; it must be ai.onnx {OPSET} {allowed}"
        )
    if model.ir_version != IR_VERSION:
        raise ExportError(f"{spec.name!r} as ONNX has IR version {model.ir_version}, opset {OPSET} needs {IR_VERSION}")
    check_graph(model, spec)
    for given, wanted in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
        check_tensors(given, wanted, spec.name)


def check_graph(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Run ONNX's own checker, full, and shape inference, strict.

    Raises:
        ExportError: with the first line of what they say.
    """
    try:
        check_model(model)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        text = " ".join(str(error).split())[:400]
        raise ExportError(f"{spec.name!r} as ONNX is not valid: {text}") from error


def tensor_spec(info: onnx.ValueInfoProto) -> TensorSpec:
    """Return name, numpy dtype and shape of a graph's input or output; an unnamed dimension is "?"."""
    tensor = info.type.tensor_type
    dims = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
    return TensorSpec(info.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name, dims)


def check_tensors(infos: "list[onnx.ValueInfoProto]", wanted: tuple[TensorSpec, ...], model_name: str) -> None:
    """Compare a graph's inputs or outputs with the specification: order, names, dtypes, shapes, the batch's name.

    Raises:
        ExportError: says what is there and what should be.
    """
    given = tuple(map(tensor_spec, infos))
    if given == wanted:
        return
    found, expected = ", ".join(map(str, given)), ", ".join(map(str, wanted))
    reason = ""
    for have, want in zip(given, wanted, strict=False):
        fixed = have.shape[:1] != want.shape[:1] and isinstance((have.shape or ("",))[0], int)
        if have.name == want.name and fixed:
            reason = f": the batch dimension of {have.name!r} is fixed at {have.shape[0]}, it must be dynamic"
    raise ExportError(f"{model_name!r} as ONNX has the tensors ({found}), expected ({expected}){reason}")


def ort_run(model: onnx.ModelProto | bytes, feeds: Feeds) -> dict[str, Array]:
    """Run a model once in ONNX Runtime, on one thread."""
    session = _session(model)
    return _answer(session, feeds)


def validate_runs(model: onnx.ModelProto | bytes, spec: ModelSpec) -> None:
    """Load the model in ONNX Runtime and run it: twice the same at one batch size, and right shapes at two.

    Raises:
        ExportError: it does not load or run, answers the same input differently, or its batch is not dynamic.
    """
    try:
        session = _session(model)
    except Exception as error:  # ONNX Runtime raises types of its own that share no base
        raise ExportError(f"{spec.name!r} as ONNX does not load in ONNX Runtime: {one_line(error)}") from error
    batches = (2, 3) if isinstance(spec.inputs[0].shape[0], str) else (int(spec.inputs[0].shape[0]),)
    for batch in batches:
        feeds = random_feeds(spec.inputs, batch, _SEED)
        try:
            first, second = _answer(session, feeds), _answer(session, feeds)
        except Exception as error:
            raise ExportError(
                f"{spec.name!r} as ONNX fails in ONNX Runtime at batch {batch}: {one_line(error)}",
                next_step="If other batch sizes run, forward bakes the batch size in: pass x.shape[0] on as it is, or "
                "-1.",
            ) from error
        for tensor in spec.outputs:
            if first[tensor.name].shape != tensor.with_batch(batch):
                raise ExportError(
                    f"{spec.name!r} as ONNX gives {tensor.name!r} the shape {list(first[tensor.name].shape)} at batch "
                    f"{batch}, expected {list(tensor.with_batch(batch))}"
                )
            if not np.array_equal(
                first[tensor.name], second[tensor.name], equal_nan=first[tensor.name].dtype.kind == "f"
            ):
                raise ExportError(
                    f"{spec.name!r} as ONNX answers the same input differently each time in {tensor.name!r}",
                    next_step="Remove what is random in the module: dropout outside eval mode, torch.rand and the "
                    "like.",
                )


def _session(model: onnx.ModelProto | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its errors are raised as well
    return create_session(model, options)


def _answer(session: onnxruntime.InferenceSession, feeds: Feeds) -> dict[str, Array]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def one_line(error: BaseException) -> str:
    """Return an error's text on one line, at most 400 characters."""
    return " ".join(str(error).split())[:400]
