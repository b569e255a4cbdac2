"""Read an ONNX file that anyone may have made, as TensorRT's parser takes it: what is damaged says so, nothing crashes.

Local functions are inlined, shapes and types are inferred, and an input that has an initializer is none: files of
IR version 3 list every weight among the inputs, and the parser takes the initializer.

Limits: types that contradict each other are left to the reader, who may be asked about an illegal one.
"""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.inliner
import onnx_ir as ir

from tsexport.errors import TsexportError, UsageError
from tsexport.exporters.onnx_external import external_tensors, open_model

_DEFAULT_DOMAIN = "ai.onnx"
_AGAIN = "Export or copy it again."
_ERROR = re.compile(r"\(op_type:(\w+)(?:, node name: ([^\n]*?))?\): \[(\w+)\] (?!Inference error)([^\n]+)")
"""One error of ONNX's shape inference: operator, node, kind and text.  Those of a body stand behind its node's."""
_WITH_BODIES = frozenset({"If", "Loop", "Scan"})
_DECLARED = "existing shape"
"""Errors with these words contradict a shape that the file declares, which no runtime computes with."""

_TRIAL = "import sys, pathlib, tsexport.exporters.onnx_reading as reading; reading.read_onnx(pathlib.Path(sys.argv[1]))"


@dataclass(frozen=True)
class Misfit:
    """A node whose inputs cannot be what they are: `reason` is what ONNX's shape inference says of it.

    `node` is its name, "" where it has none or lies in a body.
    """

    node: str
    operator: str
    reason: str


@dataclass(frozen=True)
class ReadModel:
    """A model with inferred shapes, and where they contradict each other."""

    model: ir.Model
    misfits: tuple[Misfit, ...]


def read_onnx(path: Path) -> ReadModel:
    """Return the model of an ONNX file, with the shapes and types that can be inferred.

    Raises:
        UsageError: there is no such file, or it is damaged or no ONNX model.
    """
    if not path.is_file():
        raise UsageError(f"{path} is no file", next_step="Give an .onnx file.")
    try:
        model = open_model(path)
    except TsexportError:
        raise
    except Exception as error:  # protobuf's own errors, which share no base, and those of the file system
        raise UsageError(f"{path.name} cannot be read as ONNX: {_line(error)}", next_step=_AGAIN) from error
    if not model.graph.node or not model.opset_import:
        raise UsageError(f"{path.name} holds no ONNX graph with nodes and operator sets", next_step=_AGAIN)
    try:
        _name_default_domain(model)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        _check(model)
        _drop_inputs_with_values(model.graph)
        model, misfits = _inferred(model)
        return ReadModel(ir.from_proto(model), misfits)
    except Exception as error:  # whatever ONNX and its IR raise on what does not fit together
        raise UsageError(f"{path.name} is damaged, or no valid ONNX: {_line(error)}", next_step=_AGAIN) from error


def require_readable(path: Path) -> None:
    """Read a file in a process of its own: ONNX's checks are native code, and some files end it.

    Raises:
        UsageError: that process was ended by a signal, as by an access to memory that is not there.
    """
    ran = subprocess.run([sys.executable, "-P", "-c", _TRIAL, str(path.resolve())], capture_output=True, check=False)
    if ran.returncode < 0:
        name = signal.Signals(-ran.returncode).name
        raise UsageError(
            f"{path.name} is damaged, or no valid ONNX: ONNX's own checks end with {name} on it", next_step=_AGAIN
        )


def _name_default_domain(model: onnx.ModelProto) -> None:
    """Write the default domain, which ONNX's checker knows by one of its two names alone, as ""."""
    for entry in model.opset_import:
        if entry.domain == _DEFAULT_DOMAIN:
            entry.domain = ""
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        if node.domain == _DEFAULT_DOMAIN:
            node.domain = ""
        for attribute in node.attribute:
            waiting += [inner for graph in (attribute.g, *attribute.graphs) for inner in graph.node]


def _drop_inputs_with_values(graph: onnx.GraphProto) -> None:
    values = {tensor.name for tensor in graph.initializer}
    kept = [info for info in graph.input if info.name not in values]
    if len(kept) < len(graph.input):
        del graph.input[:]
        graph.input.extend(kept)


def _inferred(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[Misfit, ...]]:
    """Return a model with inferred shapes, and where they contradict each other; there they stay as far as they go."""
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True), ()
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        misfits = tuple(dict.fromkeys(_misfits(str(error))))
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True), misfits
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return model, misfits


def _misfits(text: str) -> Iterator[Misfit]:
    for line in text.splitlines():
        found = _ERROR.search(line)
        if found is None or found[3] != "ShapeInferenceError" or _DECLARED in found[4]:
            continue
        outer = re.search(r"op_type:(\w+)", line)
        if outer is not None and outer[1] not in (found[1], *_WITH_BODIES):
            continue  # in a function that ONNX wrote an operator with, which is not the file's fault
        yield Misfit(found[2] or "", found[1], found[4].strip().rstrip("."))


def _check(model: onnx.ModelProto) -> None:
    """Run ONNX's checker, without types: an illegal one is what may be asked about."""
    if external_tensors(model):
        return  # it would look for them beside this process
    outputs = list(model.graph.output)
    known = [one for one in outputs if one.type.tensor_type.HasField("shape")]
    del model.graph.output[:]  # the checker asks for shapes of outputs, which files in use do not always have
    model.graph.output.extend(known)
    onnx.checker.check_model(model)
    del model.graph.output[:]
    model.graph.output.extend(outputs)


def _line(error: BaseException) -> str:
    """Return what an error says, or the one that it was raised from: ONNX's IR names the place alone."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__
