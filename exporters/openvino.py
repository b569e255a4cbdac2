"""Export an ONNX artifact to OpenVINO IR.

The conversion goes through ONNX, since OpenVINO's own tracing cannot hold `nn.TransformerEncoder`.  Weights stay fp32
(`save_model` halves them unless it is told not to), and the inference precision belongs to the artifact: on a CPU
with bf16 OpenVINO computes an fp32 model in bf16 otherwise.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import openvino

from tsexport.errors import ExportError
from tsexport.exporters.artifacts import describe
from tsexport.exporters.formats import EXPORT_FORMATS
from tsexport.types import Array, Artifact, ModelSpec, TensorSpec, random_feeds

OPTIONS = (("INFERENCE_PRECISION_HINT", "f32"),)
_SEED = 17


def export_openvino(source: Artifact, path: Path, *, name: str = "openvino-fp32") -> Artifact:
    """Convert an ONNX artifact to `path` (`.xml`) and the `.bin` beside it; the same source gives the same bytes.

    Raises:
        ExportError: OpenVINO cannot convert or run it, or a tensor's name, dtype or shape is lost on the way.
    """
    try:
        # Not openvino.convert_model: it reports every conversion to its vendor.
        model = openvino.Core().read_model(source.path)
    except Exception as error:  # openvino raises RuntimeErrors and its frontend's own types
        raise ExportError(
            f"artifact {source.name} cannot be converted to OpenVINO IR: {_one_line(error)}",
            next_step="Leave OpenVINO out with --formats onnx,torchscript.",
        ) from error
    files = write_ir(model, path, source)
    version = openvino.get_version().split("-")[0]
    return describe(
        files,
        "openvino",
        ModelSpec(source.name, "", "unknown", source.inputs, source.outputs),
        (*source.provenance, f"read from ONNX and saved in fp32 by openvino {version}"),
        name=name,
        precision=source.precision,
        runtimes=EXPORT_FORMATS["openvino"].runtimes,
        options=OPTIONS,
    )


def write_ir(
    model: openvino.Model, path: Path, source: Artifact, *, precise: Sequence[openvino.Node] = ()
) -> tuple[Path, Path]:
    """Write a model made from the artifact `source` to `path` (`.xml`) and the `.bin` beside it; return both.

    The tensors must be those of `source`; the same model gives the same bytes.

    Args:
        precise: operators of `model` that are marked to be computed in the precision of the file, whatever the hint.

    Raises:
        ExportError: a tensor's name, dtype or shape differs, or the file does not run.
    """
    _require_tensors(model, source)
    _make_names_reproducible(model, source)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written = Path(folder) / path.name
        openvino.save_model(model, written, compress_to_fp16=False)
        if precise:
            _mark_precise(written, frozenset(operation.get_friendly_name() for operation in precise))
        _require_runs(written, source)
        # weights first: an .xml is never without them
        weights = written.with_suffix(".bin").replace(path.with_suffix(".bin"))
        return written.replace(path), weights


def _mark_precise(path: Path, names: frozenset[str]) -> None:
    """Mark operators of an IR as ones that no hint makes less precise; OpenVINO's Python cannot set this mark."""
    tree = ElementTree.parse(path)
    for layer in tree.iterfind("./layers/layer"):
        if layer.get("name") not in names:
            continue
        marks = layer.find("rt_info")
        if marks is None:
            marks = ElementTree.Element("rt_info")
            layer.insert(0 if layer.find("data") is None else 1, marks)
        ElementTree.SubElement(
            marks, "attribute", {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:f16"}
        )
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _require_tensors(model: openvino.Model, source: Artifact) -> None:
    for ports, wanted in ((model.inputs, source.inputs), (model.outputs, source.outputs)):
        names = [sorted(port.get_names()) for port in ports]
        if names != [[tensor.name] for tensor in wanted]:
            raise ExportError(
                f"artifact {source.name} as OpenVINO IR has the tensors {names}, expected {[t.name for t in wanted]}"
            )
        for port, tensor in zip(ports, wanted, strict=True):
            shape = tuple(None if dim.is_dynamic else dim.get_length() for dim in port.get_partial_shape())
            dynamic = tuple(None if isinstance(dim, str) else dim for dim in tensor.shape)
            if shape != dynamic or np.dtype(port.get_element_type().to_dtype()).name != tensor.dtype:
                raise ExportError(
                    f"artifact {source.name} as OpenVINO IR has {tensor.name!r} as {port.get_element_type()}"
                    f"{port.get_partial_shape()}, expected {tensor}"
                )


def _make_names_reproducible(model: openvino.Model, source: Artifact) -> None:
    """Rename what was numbered by a counter of the whole process, and drop the record of a conversion.

    Names that come from the source's file stay, and so do all tensor names.
    """
    known = _names_in_file(source)
    for index, operation in enumerate(model.get_ordered_ops()):
        if operation.get_friendly_name() not in known:
            name = f"{operation.get_type_name()}_{index}"
            operation.set_friendly_name(f"{name}_added" if name in known else name)
    if "conversion_parameters" in model.rt_info:
        del model.rt_info["conversion_parameters"]


def _names_in_file(source: Artifact) -> set[str]:
    if source.format == "openvino":
        return {operation.get_friendly_name() for operation in openvino.Core().read_model(source.path).get_ops()}
    graph = onnx.load(source.path, load_external_data=False).graph
    tensors = {tensor.name for tensor in (*graph.initializer, *graph.input, *graph.output)}
    return tensors | {name for node in graph.node for name in (node.name, *node.output)}


def _require_runs(path: Path, source: Artifact) -> None:
    compiled = openvino.Core().compile_model(path, "CPU", {**dict(OPTIONS), "INFERENCE_NUM_THREADS": "1"})
    dynamic = isinstance(source.inputs[0].shape[0], str)
    for batch in (2, 3) if dynamic else (int(source.inputs[0].shape[0]),):
        feeds = random_feeds(source.inputs, batch, _SEED)
        try:
            first, second = (
                {tensor.name: np.array(answer[tensor.name]) for tensor in source.outputs}
                for answer in (compiled(feeds), compiled(feeds))
            )
        except RuntimeError as error:
            raise ExportError(
                f"artifact {source.name} as OpenVINO IR fails at batch {batch}: {_one_line(error)}"
            ) from error
        for tensor in source.outputs:
            _require_answer(tensor, batch, first[tensor.name], second[tensor.name], source.name)


def _require_answer(tensor: TensorSpec, batch: int, first: Array, second: Array, name: str) -> None:
    if first.shape != tensor.with_batch(batch):
        raise ExportError(
            f"artifact {name} as OpenVINO IR gives {tensor.name!r} the shape {list(first.shape)} at batch {batch}, "
            f"expected {list(tensor.with_batch(batch))}"
        )
    if not np.array_equal(first, second, equal_nan=first.dtype.kind == "f"):
        raise ExportError(
            f"artifact {name} as OpenVINO IR answers the same input differently each time in {tensor.name!r}"
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]
