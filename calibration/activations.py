"""What a graph's tensors hold on calibration windows: intermediate tensors become outputs, a few groups at a time.

ONNX Runtime keeps every output of a batch until the call ends.  So a batch has so many windows that all tensors
together take at most `GROUP_BYTES`; where those of one window are larger, they are taken in groups, each of which is
one pass over the windows.  How large a tensor is is asked of the graph itself, with one window.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime

from tsexport.calibration.datasets import Dataset, calibration_batch
from tsexport.calibration.histograms import Counts, Histograms
from tsexport.calibration.observers import range_of
from tsexport.calibration.table import CalibrationTable, Observer, TensorRange
from tsexport.errors import DataError, did_you_mean
from tsexport.types import Array, Feeds, files_sha256

GROUP_BYTES = 2**28
PROBED_TENSORS = 64
"""So many tensors of one window are held while their sizes are asked for."""
_FATAL_ONLY = 4
_FOLDER_OPTION = "session.model_external_initializers_file_folder_path"


class ObservedGraph:
    """An ONNX file whose tensors can be asked for by name.

    Raises:
        DataError: a tensor that the graph does not compute, or that is asked for twice.
    """

    def __init__(self, model: Path, tensors: Sequence[str]) -> None:
        self._folder = model.resolve().parent
        self._model = onnx_ir.load(model)
        graph = self._model.graph
        self._values = {value.name: value for node in graph for value in node.outputs if value.name}
        self._inputs = {value.name for value in graph.inputs if value.name}
        known = (*self._inputs, *self._values)
        for index, name in enumerate(tensors):
            if name in tensors[:index]:
                raise DataError(f"the tensor {name!r} is to be observed twice")
            if name not in known:
                what = "is a constant" if name in graph.initializers else "is none that the graph computes"
                raise DataError(
                    f"{model.name}: the tensor {name!r} {what}{did_you_mean(name, known)}; observed are inputs and "
                    f"outputs of nodes"
                )

    def session(self, tensors: Sequence[str]) -> "_Taps":
        """Return what answers these tensors to feeds."""
        computed = [name for name in tensors if name not in self._inputs]
        fed = [name for name in tensors if name in self._inputs]
        return _Taps(self._session([self._values[name] for name in computed]) if computed else None, computed, fed)

    def session_of_reductions(self, tensors: Sequence[str], operators: Sequence[str]) -> "_Taps":
        """Return what answers, for each fp32 tensor, one number an operator: what "Size", "ReduceMax" or the like give.

        The answers bear the names that `reduction_name` gives.  Each is computed as soon as its tensor is there, which
        is gone as soon as in the graph itself.
        """
        graph = self._model.graph
        fed = {value.name: value for value in graph.inputs}
        added = []
        for name in tensors:
            value = self._values.get(name) or fed[name]
            nodes = [_reduction(operator, value) for operator in operators]
            producer = value.producer()
            if producer is None:
                graph.extend(nodes)
            else:
                graph.insert_after(producer, nodes)
            added += nodes
        numbers = [node.outputs[0] for node in added]
        try:
            # By default all of the graph runs before the nodes beside it, and holds every tensor until then.
            session = self._session(numbers, onnxruntime.ExecutionOrder.PRIORITY_BASED)
        finally:
            graph.outputs.clear()
            graph.remove(added)
        return _Taps(session, [str(number.name) for number in numbers], ())

    def _session(
        self,
        values: Sequence[onnx_ir.Value],
        order: onnxruntime.ExecutionOrder = onnxruntime.ExecutionOrder.DEFAULT,
    ) -> onnxruntime.InferenceSession:
        outputs = self._model.graph.outputs
        outputs.clear()
        outputs.extend(values)
        options = onnxruntime.SessionOptions()
        options.execution_order = order
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # sums in one order: equal ranges every time
        # Nothing is fused away or rounded otherwise, on any CPU.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry(_FOLDER_OPTION, str(self._folder))
        text = onnx_ir.to_proto(self._model).SerializeToString()
        return onnxruntime.InferenceSession(text, options, providers=["CPUExecutionProvider"])


def _reduction(operator: str, value: onnx_ir.Value) -> onnx_ir.Node:
    is_count = operator == "Size"
    answer = onnx_ir.Value(
        name=reduction_name(operator, str(value.name)),
        type=onnx_ir.TensorType(onnx_ir.DataType.INT64 if is_count else onnx_ir.DataType.FLOAT),
        shape=onnx_ir.Shape([]),
    )
    return onnx_ir.node(operator, [value], {} if is_count else {"keepdims": 0}, outputs=[answer])


def reduction_name(operator: str, tensor: str) -> str:
    """Return the name under which `session_of_reductions` answers."""
    return f"{operator} of {tensor}"


class _Taps:
    def __init__(
        self, session: onnxruntime.InferenceSession | None, computed: Sequence[str], fed: Sequence[str]
    ) -> None:
        self._session, self._computed, self._fed = session, list(computed), list(fed)
        self._takes = {node.name for node in self._session.get_inputs()} if self._session else set()

    def run(self, feeds: Feeds) -> dict[str, Array]:
        found = {name: feeds[name] for name in self._fed}
        if self._session is not None:
            taken = {name: array for name, array in feeds.items() if name in self._takes}
            found.update(zip(self._computed, self._session.run(self._computed, taken), strict=True))
        return found


def model_digest(model: Path) -> str:
    """Return the SHA-256 of an ONNX file, with the files beside it that hold its weights where there are any."""
    stored = onnx_ir.load(model).graph.initializers.values()
    tensors = [value.const_value for value in stored]
    beside = sorted({str(one.location) for one in tensors if isinstance(one, onnx_ir.ExternalTensor)})
    return files_sha256((model, *(model.parent / location for location in beside)))


def groups_of(sizes: Mapping[str, int], limit: int) -> tuple[tuple[str, ...], ...]:
    """Cut tensors, in order, into groups of at most `limit` bytes; a larger tensor is a group of its own."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return tuple(map(tuple, groups))


def _sizes(graph: ObservedGraph, feeds: Feeds, tensors: Sequence[str]) -> dict[str, int]:
    """Return how many bytes each tensor takes for these feeds."""
    sizes: dict[str, int] = {}
    for start in range(0, len(tensors), PROBED_TENSORS):
        answers = graph.session(tensors[start : start + PROBED_TENSORS]).run(feeds)
        sizes.update({name: array.nbytes for name, array in answers.items()})
    return {name: sizes[name] for name in tensors}


def windows_at_once(dataset: Dataset, sizes: Iterable[int], limit: int) -> int:
    """Return how many windows may go through a graph together whose tensors take `sizes` bytes for one."""
    return max(1, min(calibration_batch(dataset), limit // max(1, sum(sizes))))


def answers(
    model: Path, dataset: Dataset, tensors: Sequence[str], *, group_bytes: int = GROUP_BYTES
) -> Iterator[dict[str, Array]]:
    """Yield what some of a graph's tensors hold for the windows of a dataset, a group and a batch at a time.

    Raises:
        DataError: no windows, or tensors that cannot be asked for.
    """
    if not dataset.count:
        raise DataError("the calibration data holds no window")
    graph = ObservedGraph(model, tensors)
    sizes = _sizes(graph, next(iter(dataset.batches(1))).feeds, tensors)
    # Fewer windows at once rather than several passes: each pass runs the whole graph.
    rows = windows_at_once(dataset, sizes.values(), group_bytes)
    for group in groups_of({name: size * rows for name, size in sizes.items()}, group_bytes):
        session = graph.session(group)
        for batch in dataset.batches(rows):
            yield session.run(batch.feeds)


def observe(model: Path, dataset: Dataset, tensors: Sequence[str], axis: int | None) -> dict[str, tuple[Counts, ...]]:
    """Return the histograms of a graph's tensors on every window, one of each or one for each index along an axis.

    They serve every observer of that axis.

    Raises:
        DataError: as `calibration.table.calibrate`.
    """
    seen = {name: Histograms(name, axis) for name in tensors}
    for tensors_of_batch in answers(model, dataset, tensors, group_bytes=GROUP_BYTES):
        for name, array in tensors_of_batch.items():
            seen[name].update(array)
    return {name: histograms.channels for name, histograms in seen.items()}


def table_of(
    seen: Mapping[str, tuple[Counts, ...]], model: Path, dataset: Dataset, observer: Observer
) -> CalibrationTable:
    """Return the table of what an observer takes from histograms of a model's tensors on a dataset."""
    return CalibrationTable(
        model_sha256=model_digest(model),
        data_sha256=dataset.digest,
        window_ids=dataset.ids(range(dataset.count)),
        observer=observer,
        tool=f"tsexport {version('tsexport')}, onnxruntime {version('onnxruntime')}",
        ranges=tuple(tensor_range(name, channels, observer) for name, channels in seen.items()),
    )


def tensor_range(name: str, channels: Sequence[Counts], observer: Observer) -> TensorRange:
    """Return the range that an observer takes from what was seen of a tensor."""
    pairs = np.array([range_of(counts, observer) for counts in channels])
    low, high = float(pairs[:, 0].min()), float(pairs[:, 1].max())
    if observer.axis is None:
        return TensorRange(name, low, high)
    lows, highs = pairs.T.tolist()
    return TensorRange(name, low, high, tuple(lows), tuple(highs))
