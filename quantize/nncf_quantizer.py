"""INT8 by NNCF's post-training quantization, for OpenVINO.

A recipe's preset says how NNCF is called:

    mixed        its mixed preset: symmetric weights, affine activations, every operator it knows.  Best on convolutions
    products     its performance preset (symmetric activations) on products and convolutions alone: what is elementwise,
                 a normalization, a pooling, a softmax or recurrent stays in floating point, or in bf16 where the
                 artifact says so

Measured on AVX512-VNNI with bf16, one thread, batch 1, CPU time of interleaved calls on a busy machine; times faster
than clean fp32 in ONNX Runtime, and relative error of the output:

                  mixed          products        products, bf16   transformer     ORT dynamic-s8
    patchtst-cpu  1.44 (0.9 %)   1.64 (0.9 %)    1.69 (0.9 %)     1.68 (0.3 %)    1.62 (1.0 %)
    itransformer  1.63 (22 %)    2.10 (0.6 %)    2.06 (0.7 %)     1.94 (0.7 %)    1.77 (0.5 %)
    hrm-27m       2.46 (4.8 %)   2.52 (1.9 %)*   3.27 (2.2 %)     3.02 (19 %)     2.50 (1.6 %)
    nhits         3.01 (2.2 %)   4.00 (0.2 %)*   3.88 (0.2 %)*    4.28 (0.3 %)    3.27 (0.2 %)
    unet          3.2 (1.3 %)    3.2 (1.2 %)     3.2 (1.2 %)      3.2 (1.2 %)     -
    inception     3.6 (1.0 %)    2.9 (0.7 %)     3.0 (0.8 %)      3.2 (3.2 %)     1.1 (0.5 %)
    tcn           2.19 (0.7 %)   2.13 (0.5 %)*   2.10 (0.6 %)*    2.08 (0.9 %)    0.98 (0.3 %)

* with the mixed preset in place of performance, which was 0.8 times as fast where both were measured.

Tried and left out: NNCF's transformer model type with smooth quantization (the column above).  It won nowhere beyond
the noise, and its error hangs on the calibration windows: 0.3 % or 21 % on patchtst-cpu.  Without smooth quantization
(1.66, 0.9 %) it is what products is.  INT8 of LSTM in OpenVINO, which the performance preset alone makes, had 1.84 with
11 % error where ONNX Runtime's dynamic LSTM has 2.14 with 0.3 %.  Of a GRU NNCF leaves the weights alone where the
reset gate comes after the product, as torch's does.  unet's convolutions run at 65 to 98 % of what the instructions
can do: what is left there is fewer operations, not another recipe.

Constants are folded first: a weight that the ONNX frontend computes from constants (the gates of an LSTM in
OpenVINO's order) is otherwise no constant to NNCF, and stays in fp32.
"""

import io
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from tsexport.calibration.datasets import Dataset, calibration_batch
from tsexport.errors import ConfigurationError, did_you_mean
from tsexport.exporters.artifacts import describe
from tsexport.exporters.openvino import OPTIONS, write_ir
from tsexport.exporters.preprocessing import BEFORE, BEHIND
from tsexport.quantize.recipe import Recipe
from tsexport.quantize.sources import NothingQuantizedError, Order
from tsexport.types import Array, Artifact

LEFT_IN_FLOAT = (
    *("Add", "Subtract", "Multiply", "Divide", "Power", "Sqrt", "MVN", "ReduceMean", "ReduceSum"),
    *("Softmax", "Gelu", "AvgPool", "MaxPool", "Concat", "Interpolate"),
    *("LSTMSequence", "GRUSequence"),
)
"""Types of OpenVINO's operators that the preset "products" leaves in floating point."""
_PRODUCTS = frozenset({"MatMul", "Convolution", "ConvolutionBackpropData", "GroupConvolution", "LSTMSequence"})


@contextmanager
def quiet() -> Iterator[None]:
    """Keep NNCF's progress bars off our output, and its telemetry from the network."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"  # the documented way to keep openvino-telemetry from sending anything
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


def fold_constants(model: Any) -> None:
    """Compute, in place, what depends on constants alone."""
    from openvino.passes import ConstantFolding, Manager

    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)


def quantize_openvino(source: Path, recipe: Recipe, calibration: Dataset, onnx_source: Path | None = None) -> Any:
    """Return an fp32 IR file quantized by a recipe, as an `openvino.Model`.

    Args:
        source: the .xml of an fp32 IR.
        recipe: of tool "nncf".
        calibration: windows named as the model's inputs; NNCF reads it once for each statistic, in a stream.
        onnx_source: the ONNX file that the IR was made of, whose nodes `float_layers` name.

    Raises:
        NothingQuantizedError: the model has no constant weights that NNCF quantizes.
        ConfigurationError: `float_layers` names what the model does not have.
    """
    with quiet():
        import nncf
        import openvino

        nncf.set_log_level(logging.ERROR)
        model = openvino.Core().read_model(source)
        fold_constants(model)
        batches = _Batches(calibration)
        fix = nncf.OverflowFix.ENABLE if recipe.reduce_range else nncf.OverflowFix.DISABLE
        mixed = recipe.preset in ("", "mixed")
        present = {operation.get_type_name() for operation in model.get_ops()}
        ignored = nncf.IgnoredScope(
            names=list(
                dict.fromkeys([*_preparation(model), *float_operations(model, recipe.float_layers, onnx_source)])
            ),
            types=[kind for kind in LEFT_IN_FLOAT if kind in present] if recipe.preset == "products" else [],
        )
        quantized = nncf.quantize(
            model,
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset.MIXED if mixed else nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(batches),
            fast_bias_correction=True,
            ignored_scope=ignored,
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
        )
    # NNCF also quantizes the operands of elementwise operators; those alone make no INT8 model.
    if not any(_is_integer_weight(operation) for operation in quantized.get_ops()):
        raise NothingQuantizedError("the model has no operator with constant weights")
    return quantized


def float_operations(model: Any, names: Sequence[str], onnx_source: Path | None) -> list[str]:
    """Return the names of the operators that nodes of the ONNX file have become, as far as NNCF could quantize them.

    OpenVINO splits a node (a Conv with its bias) and gives the node's name to the last part, so the parts are found by
    the tensors between which they stand.

    Raises:
        ConfigurationError: a name that neither the ONNX file nor the model has.
    """
    if not names:
        return []
    graph = onnx.load(onnx_source, load_external_data=False).graph if onnx_source is not None else onnx.GraphProto()
    nodes = {node.name: node for node in graph.node}
    operations = {operation.get_friendly_name(): operation for operation in model.get_ops()}
    made_by = {
        name: output.get_node()
        for operation in operations.values()
        for output in operation.outputs()
        for name in output.get_names()
    }
    found: list[str] = []
    for name in names:
        if name not in nodes and name not in operations:
            known = [*nodes, *operations]
            raise ConfigurationError(
                f"no layer of the model is called {name!r}{did_you_mean(name, known)}",
                next_step="name nodes of the fp32 ONNX file",
            )
        node = nodes.get(name)
        ends = [made_by[output] for output in node.output if output in made_by] if node is not None else []
        if not ends and name in operations:
            ends = [operations[name]]
        found += _products_between(ends, node, made_by)
    return found


def _products_between(ends: list[Any], node: onnx.NodeProto | None, made_by: dict[str, Any]) -> list[str]:
    """Return the names of products from `ends` upwards, not going beyond the operators that make the node's inputs."""
    borders = (
        {made_by[name].get_friendly_name() for name in node.input if name in made_by} if node is not None else set()
    )
    waiting, seen, found = list(ends), set(), []
    while waiting:
        operation = waiting.pop()
        name = operation.get_friendly_name()
        if name in seen or name in borders:
            continue
        seen.add(name)
        if operation.get_type_name() in _PRODUCTS:
            found.append(name)
        elif node is not None:
            waiting += [value.get_node() for value in operation.input_values()]
    return sorted(found)


def _preparation(model: Any) -> list[str]:
    """Return the names of operators that prepare windows or scale forecasts back: they see raw values of any size."""
    names = [operation.get_friendly_name() for operation in model.get_ordered_ops()]
    prepared = [name for name in names if name.startswith((f"/{BEFORE}/", f"/{BEHIND}/"))]
    if prepared:  # OpenVINO names the last operator after the output
        prepared.append(model.get_results()[0].input_value(0).get_node().get_friendly_name())
    return list(dict.fromkeys(prepared))


def _is_integer_weight(operation: Any) -> bool:
    return operation.get_type_name() == "Constant" and operation.get_element_type().to_string() in ("i8", "u8")


class _Batches:
    """Iterates over a dataset's batches from the start each time it is asked."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset, self._size = dataset, calibration_batch(dataset)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return (dict(batch.feeds) for batch in self._dataset.batches(self._size))

    def __len__(self) -> int:
        return -(-self._dataset.count // self._size)


def build(order: Order, folder: Path) -> Artifact:
    """Write the artifact of a recipe of tool "nncf"."""
    onnx_source = order.sources.onnx.path if order.sources.onnx is not None else None
    model = quantize_openvino(order.source.path, order.recipe, order.calibration, onnx_source)
    return describe(
        write_ir(model, folder / f"{order.artifact_name}.xml", order.source),
        "openvino",
        order.spec,
        (*order.source.provenance, f"nncf {version('nncf')}: {order.recipe.summary}"),
        name=order.artifact_name,
        precision=order.recipe.precision,
        runtimes=order.recipe.runtimes,
        options=order.recipe.options or OPTIONS,
    )
