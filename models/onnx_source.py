"""An existing `.onnx` file as a source model: checked, read, and run by ONNX Runtime without graph optimizations."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from tsexport.errors import MissingDependencyError, UsageError, reason_of
from tsexport.models.flat import PROBE_BATCHES, PROBE_SEED, output_spec
from tsexport.types import BATCH, Array, Feeds, TensorSpec, file_sha256, random_feeds

if TYPE_CHECKING:
    from onnx import TensorProto


@dataclass(frozen=True)
class OnnxSource:
    """An ONNX model: its inputs and outputs, the opset of the default domain, and a session."""

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    parameters: int
    session: Any

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return the named outputs."""
        return _run(self.session, feeds)


def open_onnx(path: Path, given: tuple[TensorSpec, ...] = ()) -> OnnxSource:
    """Check and load a file; `given` inputs fill in dimensions that the file leaves open.

    Raises:
        UsageError: the file is invalid, reaches outside its folder, has a fixed batch, other dynamic dimensions or
            types that cannot be fed, or ONNX Runtime cannot load it.
    """
    import onnx

    model = read_onnx(path)
    data_files(path, model)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UsageError(
            f"{path} is not valid ONNX: {reason_of(error)}", next_step="Export the model again."
        ) from error
    # Files of before IR version 4 list initializers among the inputs.
    constants = {tensor.name for tensor in model.graph.initializer}
    by_name = {spec.name: spec for spec in given}
    inputs = tuple(_input(path, value, by_name) for value in model.graph.input if value.name not in constants)
    session = _session(path)
    outputs = _outputs(path, session, inputs)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    parameters = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    return OnnxSource(path, inputs, outputs, opset, parameters, session)


def onnx_digest(path: Path) -> str:
    """Return the SHA-256 of an ONNX file, or of it together with its external data.

    Raises:
        UsageError: it is not ONNX, or its external data is missing or lies outside its folder.
    """
    files = data_files(path, read_onnx(path))
    if not files:
        return file_sha256(path)
    lines = "".join(f"{file_sha256(file)}  {file.relative_to(path.resolve().parent)}\n" for file in files)
    return hashlib.sha256(f"{file_sha256(path)}\n{lines}".encode()).hexdigest()


def read_onnx(path: Path) -> Any:
    """Return the ModelProto without its external data.

    Raises:
        UsageError: it is not ONNX.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError(
            "the onnx package is needed to read an .onnx file", next_step="pip install 'tsexport[build]'"
        ) from error
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise UsageError(f"{path} is not ONNX: {error}", next_step="Export or download it again.") from error
    if not model.graph.node:
        raise UsageError(f"{path} is not ONNX, or an empty graph", next_step="Export or download it again.")
    return model


def data_files(path: Path, model: Any) -> tuple[Path, ...]:
    """Return the external data files of a model, sorted.

    Raises:
        UsageError: one is missing or lies outside the model's folder.
    """
    folder = path.resolve().parent
    found = set()
    entries = (entry for tensor in every_tensor(model) for entry in tensor.external_data)
    for location in (entry.value for entry in entries if entry.key == "location"):
        try:
            target = (folder / location).resolve()
            is_there = target.is_file()
        except (OSError, ValueError):  # a name that no file can have
            target, is_there = folder / "?", False
        if PurePosixPath(location).is_absolute() or not target.is_relative_to(folder):
            raise UsageError(
                f"{path} keeps weights in {location!r}, outside its own folder, which is not read",
                next_step="Put the model and its data into one folder.",
            )
        if not is_there:
            raise UsageError(
                f"{path} keeps weights in {location!r}, which is missing", next_step="Copy that file beside the model."
            )
        found.add(target)
    return tuple(sorted(found))


def every_tensor(model: Any) -> "Iterator[TensorProto]":
    """Yield the tensors of a model: of its graph, of the bodies of its nodes, and of its local functions."""
    yield from _tensors(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors(graph: Any) -> "Iterator[TensorProto]":
    yield from graph.initializer
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Any) -> "Iterator[TensorProto]":
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for inner in attribute.graphs:
                yield from _tensors(inner)


def _input(path: Path, value: Any, given: Mapping[str, TensorSpec]) -> TensorSpec:
    import onnx

    kind = value.type.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    except KeyError:
        dtype = np.dtype(object)
    if dtype.kind not in "fiub":
        raise UsageError(f"input {value.name} of {path.name} is of a type that cannot be fed")
    dimensions = [d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in kind.shape.dim]
    shown = f"input {value.name} of {path.name} is [{', '.join(map(str, dimensions))}]"
    if not dimensions or isinstance(dimensions[0], int):
        raise UsageError(
            f"{shown}: its batch is fixed", next_step="Export it with a dynamic first dimension (dynamic_axes)."
        )
    wanted = given[value.name].shape if value.name in given else (BATCH, *dimensions[1:])
    if len(wanted) != len(dimensions) or any(
        isinstance(d, int) and d != w for d, w in zip(dimensions[1:], wanted[1:], strict=False)
    ):
        raise UsageError(f"{shown}; the input given for it is {given[value.name]}")
    if not all(isinstance(dimension, int) for dimension in wanted[1:]):
        raise UsageError(
            f"{shown}: only the first dimension may be dynamic",
            next_step=f"Fix the others: --input {value.name}=batch,...",
        )
    return TensorSpec(value.name, dtype.name, (BATCH, *wanted[1:]))


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "onnxruntime is needed to run an .onnx model", next_step="pip install 'tsexport[build]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base
        raise UsageError(
            f"ONNX Runtime cannot load {path}: {reason_of(error)}",
            next_step="Export or copy it again, with the file that holds its weights where there is one.",
        ) from error


def _run(session: Any, feeds: Feeds) -> dict[str, Array]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _outputs(path: Path, session: Any, inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Return the outputs as two batch sizes show them: declared shapes are often open or wrong."""
    try:
        small, large = (_run(session, random_feeds(inputs, batch, PROBE_SEED)) for batch in PROBE_BATCHES)
    except Exception as error:  # onnxruntime's exceptions share no base
        raise UsageError(
            f"{path} does not run on {', '.join(map(str, inputs))} with batches of {PROBE_BATCHES[0]} and "
            f"{PROBE_BATCHES[1]}: {reason_of(error)}",
            next_step="Its batch size may be fixed inside: export it with a dynamic batch.",
        ) from error
    return tuple(output_spec(n, small[n].dtype.name, small[n].shape, large[n].shape) for n in small)
