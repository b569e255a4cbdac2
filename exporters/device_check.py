"""Will TensorRT take this ONNX file, and compute what it says?  Node by node, without a device and without TensorRT.

Each node is held against the operator table of a TensorRT version (`device_table`), its facts (`device_facts`), the
rules of Q/DQ (`qdq_rules`) and, for bf16, ONNX's own schema.  The file is judged as it stands.  A verdict on a version
whose importer was not read rests on the last one that was, and the report says so.

Limits: values known only at run time, memory, and whether a kernel exists for a shape are not judged.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from tsexport.exporters.device_facts import CHECKS
from tsexport.exporters.device_table import Table, tensorrt_table, version_key
from tsexport.exporters.onnx_reading import Misfit, read_onnx
from tsexport.exporters.qdq_pairs import name_of, type_of
from tsexport.exporters.qdq_regions import constant_of, shape_of
from tsexport.exporters.qdq_rules import check_graph_rules
from tsexport.types import Precision

Kind = Literal["unsupported", "type", "node", "computed wrongly", "Q/DQ", "bf16", "hazard"]
Level = Literal["error", "warning"]
_OWN = ("", "ai.onnx")
_BF16_FROM = (9, 0)
_INT64_FROM = (9, 0)
_LARGEST_RANK = 8
_RULES_AS_FACTS = frozenset(
    {
        "own-operators", "opset", "symmetric-s8", "zero-point-there", "zero-point-zero", "scale-fp32", "scale-positive",
        "lengths", "axis-written",
    }
)  # fmt: skip
"""Rules that the table's facts say more precisely, version by version."""
_RULES_REFUSED = frozenset({"scale-constant", "activations-per-tensor"})
_NAMES = {"FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "DOUBLE": "FP32"}
"""TensorRT's names of ONNX's types; FP64 is narrowed to FP32."""


@dataclass(frozen=True)
class DeviceFinding:
    """One thing that is wrong with a node, or that the reader should know.

    node: its name, or its operator and output; "" for the file as a whole.
    first_version: of TensorRT from which on the node is taken as it is, "" where there is none.
    rewrite: what helps, "" where nothing is known.
    """

    node: str
    operator: str
    kind: Kind
    level: Level
    reason: str
    first_version: str = ""
    rewrite: str = ""


@dataclass(frozen=True)
class DeviceReport:
    """What TensorRT `tensorrt` would do with a file of so many nodes; `notes` say what the verdicts rest on."""

    file: str
    target: str
    device: str
    tensorrt: str
    nodes: int
    findings: tuple[DeviceFinding, ...]
    notes: tuple[str, ...]

    @property
    def errors(self) -> tuple[DeviceFinding, ...]:
        """The findings for which the device refuses the file, or computes something else."""
        return tuple(one for one in self.findings if one.level == "error")

    @property
    def accepted(self) -> bool:
        return not self.errors


@dataclass(frozen=True)
class _Judge:
    """Judges nodes by one version."""

    table: Table
    version: str

    @cached_property
    def narrows(self) -> bool:
        """Whether INT64 is narrowed to INT32."""
        return version_key(self.version) < _INT64_FROM

    def findings(self, node: ir.Node) -> Iterator[tuple[Kind, Level, str, str]]:
        """Yield (kind, level, reason, rewrite)."""
        operator = node.op_type
        if node.domain not in _OWN:
            yield "unsupported", "error", f"operators of the domain {node.domain!r} need a plugin", ""
            return
        types = self.table.types_of(operator, self.version)
        if types is None:
            yield "unsupported", "error", f"TensorRT {self.version} has no {operator}", self._rewrite(operator)
            return
        unknown = self._unknown_type(node)
        if unknown is not None:
            yield unknown
        else:
            yield from self._of_types(node, types)
        for value in (*_given(node), *node.outputs):
            shape = shape_of(value)
            if shape is not None and len(shape) > _LARGEST_RANK:
                yield "node", "error", f"{value.name!r} has {len(shape)} dimensions, TensorRT at most 8", ""
        for fact in self.table.facts_on(operator, self.version):
            if not CHECKS[fact.check](node):
                continue
            kind: Kind = "node" if fact.verdict == "refused" else fact.verdict
            if operator in ("QuantizeLinear", "DequantizeLinear"):
                kind = "Q/DQ"
            level: Level = "warning" if fact.verdict == "hazard" else "error"
            wrong = "accepted and computed wrongly: " if fact.verdict == "computed wrongly" else ""
            yield kind, level, wrong + fact.reason, fact.rewrite

    @property
    def _lacks_bf16(self) -> bool:
        return version_key(self.version) < _BF16_FROM

    def _no_bf16(self) -> tuple[Kind, Level, str, str]:
        return "bf16", "error", f"TensorRT {self.version} has no bf16, which begins with 9.0", "use fp16 or fp32"

    def _rewrite(self, operator: str) -> str:
        return self.table.rewrites.get(operator, "")

    def _unknown_type(self, node: ir.Node) -> tuple[Kind, Level, str, str] | None:
        """Return what is wrong with an input of the graph or a constant of a type that TensorRT does not have."""
        for value in (*_given(node), *(node.outputs if node.op_type == "Constant" else ())):
            kind = type_of(value)
            if kind == ir.DataType.BFLOAT16 and self._lacks_bf16:
                return self._no_bf16()
            if kind is not None and kind != ir.DataType.UNDEFINED and not self.table.has_type(kind.name, self.version):
                reason = f"{value.name!r} is of {kind.name}, a type that TensorRT {self.version} does not have"
                return "type", "error", reason, "store it as FLOAT or INT32"
        return None

    def _of_types(self, node: ir.Node, types: tuple[str, ...]) -> Iterator[tuple[Kind, Level, str, str]]:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast", "Constant", "If", "Loop", "Scan"):
            return  # the facts say more
        for value in _data(node):
            kind = type_of(value)
            if kind is None or not types:
                continue
            given = _NAMES.get(kind.name, kind.name)
            if given == "BF16" and self._lacks_bf16:
                yield self._no_bf16()
                return
            if given == "INT64" and self.narrows:
                given = "INT32"
            if given not in types:
                reason = f"{node.op_type} of {given}: TensorRT {self.version} takes {', '.join(types)}"
                yield "type", "error", reason, _cast_hint(given, types)
                return


def _given(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of a node that no node makes: inputs of the graph and initializers."""
    return [value for value in node.inputs if value is not None and value.producer() is None]


def _cast_hint(given: str, types: tuple[str, ...]) -> str:
    wanted = {"BOOL": "INT32", "INT64": "INT32", "BF16": "FP32", "FP16": "FP32", "INT32": "FP32"}.get(given, "FP32")
    return f"cast to {wanted}, and back" if wanted in types else ""


def _data(node: ir.Node) -> list[ir.Value]:
    """Return the values of the type that the table's types speak of.

    That is the type of the first output where inputs share it, else that of input 0; where input 0 can only be a shape
    (ConstantOfShape), the output.
    """
    schema = _schema(node)
    if schema is None or not schema.inputs or not schema.outputs:
        return list(node.outputs[:1])
    variables = [one.type_str for one in schema.inputs]
    made = schema.outputs[0].type_str
    allowed = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
    wanted = made if made in variables and made in allowed else variables[0]
    if "tensor(float)" not in allowed.get(wanted, [wanted]):
        return list(node.outputs[:1])
    places = ((value, variables[min(index, len(variables) - 1)]) for index, value in enumerate(node.inputs))
    return [value for value, variable in places if value is not None and variable == wanted]


def _schema(node: ir.Node) -> "onnx.defs.OpSchema | None":
    version = node.version or (node.graph.opset_imports.get("", 17) if node.graph is not None else 17)
    try:
        return onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return None


def _bf16(node: ir.Node) -> Iterator[tuple[Kind, Level, str, str]]:
    """Yield where a node has bf16 and ONNX's schema of its opset does not allow it."""
    schema = _schema(node)
    if schema is None or node.domain not in _OWN:
        return
    formals = (*((value, schema.inputs) for value in node.inputs), *((value, schema.outputs) for value in node.outputs))
    places = (*range(len(node.inputs)), *range(len(node.outputs)))
    allowed = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
    for place, (value, parameters) in zip(places, formals, strict=True):
        if type_of(value) != ir.DataType.BFLOAT16 or not parameters:
            continue
        variable = parameters[min(place, len(parameters) - 1)].type_str
        if "tensor(bfloat16)" not in allowed.get(variable, [variable]):
            version = schema.since_version
            yield "bf16", "error", f"{node.op_type} of opset {version} takes no bf16", "cast to fp32, and back"
            return


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from ir.traversal.RecursiveGraphIterator(model.graph)


@dataclass
class _Collected:
    """Findings in the order of the nodes; what is found twice at a node is said once."""

    findings: dict[DeviceFinding, None] = field(default_factory=dict)

    def add(self, finding: DeviceFinding) -> None:
        self.findings.setdefault(finding)


def check_onnx(
    path: Path,
    *,
    tensorrt: str,
    precision: Precision,
    target: str = "",
    device: str = "",
    compute_capability: str | None = None,
) -> DeviceReport:
    """Return what a TensorRT version would do with an ONNX file.

    Args:
        path: the file, as it stands.
        tensorrt: such as "8.5" or "10.3".
        precision: what the target computes in; an int8 target wants Q/DQ.
        target: named in the report, as is `device`.
        compute_capability: of the GPU, such as "7.5": before 8.0 some layers have no INT8 kernel.

    Raises:
        UsageError: no file, or a damaged one.
    """
    read = read_onnx(path)
    model = read.model
    table = tensorrt_table()
    version = table.closest(tensorrt)
    judge = _Judge(table, version)
    found = _Collected()
    nodes = list(_nodes(model))
    for node in nodes:
        _judge_node(node, judge, found)
    for misfit in read.misfits:
        found.add(_of_misfit(misfit))
    for finding in (*_of_file(model, table, version, precision, nodes), *_of_narrowed(model, judge, nodes)):
        found.add(finding)
    for finding in _of_pairs(model, nodes, compute_capability):
        found.add(finding)
    findings = tuple(sorted(found.findings, key=lambda one: one.level))  # errors first, else as found
    return DeviceReport(path.name, target, device, tensorrt, len(nodes), findings, _notes(table, tensorrt, version))


def refused_by(tensorrt: str) -> Callable[[ir.Node], bool]:
    """Return the question whether a TensorRT version refuses a node, or computes something else."""
    table = tensorrt_table()
    judge = _Judge(table, table.closest(tensorrt))
    return lambda node: any(level == "error" for _, level, _, _ in judge.findings(node))


def _judge_node(node: ir.Node, judge: _Judge, found: _Collected) -> None:
    for kind, level, reason, rewrite in (*_bf16(node), *judge.findings(node)):
        first = _first_version(node, judge) if level == "error" and kind != "bf16" else ""
        found.add(DeviceFinding(name_of(node), node.op_type, kind, level, reason, first, rewrite))


def _of_misfit(misfit: Misfit) -> DeviceFinding:
    reason = f"the shapes contradict each other: {misfit.reason}"
    return DeviceFinding(misfit.node or f"some {misfit.operator}", misfit.operator, "node", "error", reason)


def _first_version(node: ir.Node, judge: _Judge) -> str:
    """Return the first later version that takes a node without an error, or ""."""
    for version in judge.table.from_version(judge.version):
        if all(level != "error" for _, level, _, _ in _Judge(judge.table, version).findings(node)):
            return version
    return ""


def _of_file(
    model: ir.Model, table: Table, version: str, precision: Precision, nodes: list[ir.Node]
) -> Iterator[DeviceFinding]:
    opset = model.opset_imports.get("", 0)
    allowed = table.max_opset[version]
    if opset > allowed:
        reason = (
            f"the file has opset {opset}, TensorRT {version} documents {allowed}; the parser does not refuse it, and "
            f"reads an operator whose meaning has changed as it was"
        )
        yield DeviceFinding("", "", "hazard", "warning", reason, rewrite=f"export with opset {min(allowed, 17)}")
    if opset < table.least_opset(version):
        reason = f"the file has opset {opset}, TensorRT {version} documents {table.least_opset(version)} as the oldest"
        yield DeviceFinding("", "", "hazard", "warning", reason, rewrite="convert it to opset 17")
    if precision == "int8" and not any(node.op_type == "QuantizeLinear" for node in nodes):
        reason = "the graph has no Q/DQ pairs: for an int8 target TensorRT computes it in floating point"
        yield DeviceFinding("", "", "Q/DQ", "warning", reason, rewrite="build the model for this target")


def _of_narrowed(model: ir.Model, judge: _Judge, nodes: list[ir.Node]) -> Iterator[DeviceFinding]:
    """Yield what becomes of FP64, which is narrowed always, and of INT64 where it is."""
    for value in model.graph.inputs:
        if value.dtype == ir.DataType.DOUBLE:
            reason = f"the input {value.name!r} of DOUBLE becomes FLOAT"
            yield DeviceFinding("", "", "hazard", "warning", reason, rewrite="feed FLOAT")
        if value.dtype == ir.DataType.INT64 and judge.narrows:
            reason = f"the input {value.name!r} of INT64 becomes INT32 before TensorRT 9"
            yield DeviceFinding("", "", "hazard", "warning", reason, "9.3", "feed INT32")
    if not judge.narrows:
        return
    for value in _constants(model, nodes):
        array = constant_of(value) if type_of(value) == ir.DataType.INT64 else None
        if array is not None and _is_beyond(array).any() and not _is_limit(array):
            reason = f"the constant {value.name!r} of INT64 has values beyond INT32, to which it is narrowed"
            yield DeviceFinding("", "", "hazard", "warning", reason, "9.3", "store values that INT32 holds")


def _constants(model: ir.Model, nodes: list[ir.Node]) -> Iterator[ir.Value]:
    """Yield the initializers of a graph and of its bodies, and what Constant nodes give."""
    graphs = dict.fromkeys([model.graph, *(node.graph for node in nodes)])
    for graph in graphs:
        if isinstance(graph, ir.Graph):
            yield from graph.initializers.values()
    for node in nodes:
        if node.op_type == "Constant":
            yield node.outputs[0]


_Whole = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def _is_beyond(array: _Whole) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return (array > 2**31 - 1) | (array < -(2**31))


def _is_limit(array: _Whole) -> bool:
    """Return whether what is beyond INT32 only stands for "to the end", as exporters write the ends of slices."""
    return bool(np.all(np.abs(array[_is_beyond(array)].astype(np.float64)) >= 2.0**62))


def _of_pairs(model: ir.Model, nodes: list[ir.Node], compute_capability: str | None) -> Iterator[DeviceFinding]:
    if not any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in nodes):
        return
    old = compute_capability is not None and float(compute_capability) < 8.0
    operators = {name_of(node): node.op_type for node in nodes}
    for one in check_graph_rules(model.graph, every_kernel=not old):
        if one.rule in _RULES_AS_FACTS:
            continue
        level: Level = "error" if one.rule in _RULES_REFUSED else "warning"
        reason = f"{one.rule}: it {one.found}; allowed is {one.allowed}"
        yield DeviceFinding(one.node, operators.get(one.node, ""), "Q/DQ", level, reason)


def _notes(table: Table, asked: str, version: str) -> tuple[str, ...]:
    notes = []
    if version_key(asked) != version_key(version):
        notes.append(f"TensorRT {asked} is not in the table: judged as {version}")
    if version in table.inferred:
        notes.append(f"the table of TensorRT {version} is inferred from the releases beside it")
    if version_key(version) > version_key(table.facts_read_to):
        notes.append(
            f"what the parser of TensorRT {version} does beyond its documentation was not read: assumed as in "
            f"{table.facts_read_to}"
        )
    return tuple(notes)
