"""Building a TensorRT engine of an ONNX file, and what TensorRT says where it cannot.

Every function takes the module `tensorrt` as its first argument, so that nothing here imports it; which flags, profile
and workspace a build has is decided in `tensorrt_plan`.
"""

import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsexport.devices import version_key
from tsexport.runtimes.tensorrt_plan import (
    NODE_NAMES_FROM,
    BuildPlan,
    ProfileRow,
    describe_node_error,
    short_version,
)

_LINES_KEPT = 50


class TensorRtFailure(Exception):
    """TensorRT refused something; the text says what, with the node where it names one."""


@dataclass
class Complaints:
    """What TensorRT said at the level of errors, oldest first: its calls answer False or None, and the log says why."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Keep one line of the log."""
        self.lines.append(" ".join(line.split()))
        del self.lines[:-_LINES_KEPT]

    def take(self) -> str:
        """Return everything since the last call, as one line; "TensorRT gave no reason" where that is nothing."""
        text = "; ".join(dict.fromkeys(self.lines)) or "TensorRT gave no reason"
        self.lines.clear()
        return text


def make_logger(trt: types.ModuleType) -> tuple[Any, Complaints]:
    """Return a logger of TensorRT that prints nothing and keeps errors, and what it keeps them in."""
    complaints = Complaints()
    kept = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in kept:
                complaints.add(msg)

    return Logger(), complaints


@dataclass(frozen=True)
class Built:
    """A serialized engine, and the timing cache after its build."""

    engine: bytes
    timing_cache: bytes


def build_engine(
    trt: types.ModuleType,
    path: Path,
    plan: BuildPlan,
    profile: Sequence[ProfileRow],
    workspace_bytes: int,
    timing_cache: bytes,
) -> Built:
    """Return an engine of an ONNX file, which takes seconds to minutes and needs the GPU it is for.

    Args:
        trt: the module `tensorrt`.
        path: the ONNX file; data beside it is found there.
        plan: the flags.
        profile: one row for each input with a free batch.
        workspace_bytes: what kernels may use while the engine runs.
        timing_cache: of an earlier build, or none.  One that does not fit is left aside.

    Raises:
        TensorRtFailure: the parser refuses a node, or the builder makes no engine.
    """
    logger, complaints = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(_bits(trt.NetworkDefinitionCreationFlag, plan.network))
    _parse(trt, network, logger, path, complaints)
    if plan.holds_fp32:
        _hold_fp32(trt, network)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    for name in plan.set:
        config.set_flag(getattr(trt.BuilderFlag, name))
    for name in plan.cleared:
        config.clear_flag(getattr(trt.BuilderFlag, name))
    if profile:
        _add_profile(builder, config, profile, complaints)
    _give_timing_cache(config, timing_cache)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise TensorRtFailure(f"no engine could be built: {complaints.take()}")
    cache = config.get_timing_cache()
    return Built(bytes(engine), b"" if cache is None else bytes(cache.serialize()))


def _bits(enumeration: Any, names: Sequence[str]) -> int:
    return sum(1 << int(getattr(enumeration, name)) for name in names)


def _parse(trt: types.ModuleType, network: Any, logger: Any, path: Path, complaints: Complaints) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(path)):
        return
    names_nodes = version_key(short_version(trt.__version__)) >= version_key(NODE_NAMES_FROM)
    errors = [_describe(parser.get_error(index), names_nodes) for index in range(parser.num_errors)]
    raise TensorRtFailure(f"the ONNX parser refuses {path.name}: {'; '.join(errors) or complaints.take()}")


def _describe(error: Any, names_nodes: bool) -> str:
    name, operator = (error.node_name(), error.node_operator()) if names_nodes else ("", "")
    return describe_node_error(error.desc(), error.node(), name, operator)


def _hold_fp32(trt: types.ModuleType, network: Any) -> None:
    """Hold to fp32 what the file computes in fp32: without it, FP16 lets the builder compute it in half precision."""
    moving = (trt.LayerType.CONSTANT, trt.LayerType.SHAPE, trt.LayerType.CAST, trt.LayerType.IDENTITY)
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
        if layer.type in moving or not outputs or outputs[0].dtype != trt.DataType.FLOAT:
            continue
        layer.precision = trt.DataType.FLOAT
        for index, tensor in enumerate(outputs):
            if tensor.dtype == trt.DataType.FLOAT:
                layer.set_output_type(index, trt.DataType.FLOAT)


def _add_profile(builder: Any, config: Any, rows: Sequence[ProfileRow], complaints: Complaints) -> None:
    profile = builder.create_optimization_profile()
    for row in rows:
        profile.set_shape(row.name, row.smallest, row.best, row.largest)
    if config.add_optimization_profile(profile) < 0:
        raise TensorRtFailure(f"the optimization profile is refused: {complaints.take()}")


def _give_timing_cache(config: Any, content: bytes) -> None:
    """Give a build the timing cache of earlier ones, or an empty one where that does not fit or is damaged."""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
