"""Export an ONNX artifact to OpenVINO IR.

The conversion goes through ONNX, since OpenVINO's own tracing cannot hold `nn.TransformerEncoder`.  Weights stay fp32
(`save_model` halves them unless it is told not to), and the inference precision belongs to the artifact: on a CPU
with bf16 OpenVINO computes an fp32 model in bf16 otherwise.
"""

import tempfile
from pathlib import Path

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
        model = openvino.convert_model(source.path)
    except Exception as error:  # openvino raises RuntimeErrors and its frontend's own types
        raise ExportError(
            f"artifact {source.name} cannot be converted to OpenVINO IR: {_one_line(error)}",
            next_step="Leave OpenVINO out with --formats onnx,torchscript.",
        ) from error
    _require_tensors(model, source)
    _make_names_reproducible(model, source.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written = Path(folder) / path.name
        openvino.save_model(model, written, compress_to_fp16=False)
        _require_runs(written, source)
        # weights first: an .xml is never without them
        weights = written.with_suffix(".bin").replace(path.with_suffix(".bin"))
        files = (written.replace(path), weights)
    version = openvino.get_version().split("-")[0]
    return describe(
        files,
        "openvino",
        ModelSpec(source.name, "", "unknown", source.inputs, source.outputs),
        (*source.provenance, f"openvino.convert_model from ONNX, saved in fp32, openvino {version}"),
        name=name,
        precision=source.precision,
        runtimes=EXPORT_FORMATS["openvino"].runtimes,
        options=OPTIONS,
    )


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


def _make_names_reproducible(model: openvino.Model, onnx_path: Path) -> None:
    """Rename what the converter numbered by a counter of the whole process, and drop its record of the conversion.

    Names that come from the ONNX file stay, and so do all tensor names.
    """
    graph = onnx.load(onnx_path, load_external_data=False).graph
    known = {tensor.name for tensor in (*graph.initializer, *graph.input, *graph.output)}
    known |= {name for node in graph.node for name in (node.name, *node.output)}
    for index, operation in enumerate(model.get_ordered_ops()):
        if operation.get_friendly_name() not in known:
            operation.set_friendly_name(f"{operation.get_type_name()}_{index}")
    if "conversion_parameters" in model.rt_info:
        del model.rt_info["conversion_parameters"]


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
