"""Weights in a second file: one protobuf holds at most 2 GiB, so a large ONNX model refers to its weights by place.

On disk such a model is two files beside each other, `model.onnx` and NAME.data, and the location in the first is the
plain name of the second.  In memory it is a small ModelProto whose locations are absolute, so that every weight is read
from its file where it is needed and 2 GB are never copied; `finish_onnx` writes plain names again.  Runtimes, and
`onnx.load`, refuse a location outside the model's folder.

Format: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md
"""

import math
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, numpy_helper

from tsexport.errors import ExportError
from tsexport.models.onnx_source import every_tensor

THRESHOLD_BYTES = 3 << 29
"""Models larger than this keep their weights in a second file; the limit of protobuf is 2 GiB."""
INLINE_BYTES = 1024
"""Smaller tensors stay in the first file: shape inference reads shapes and axes there."""
_ALIGNMENT_BYTES = 4096
"""Each tensor begins on a page, so that runtimes can map it."""
_CHUNK_BYTES = 1 << 24
_FOLDER_OPTION = "session.model_external_initializers_file_folder_path"


def open_model(path: Path) -> onnx.ModelProto:
    """Return the model of a file; weights in other files stay there, under absolute locations.

    Raises:
        ExportError: it refers to a file that does not lie beside it, or a tensor has more or fewer bytes than its shape
            and type say.
    """
    model = onnx.load(path, load_external_data=False)
    folder = path.resolve().parent
    for tensor in external_tensors(model):
        location = _reference(tensor).get("location", "")
        place = folder / location
        if place.name != location or place.resolve().parent != folder or not place.is_file():
            raise ExportError(
                f"{path.name} keeps weights in {location!r}; that must be the plain name of a file beside it",
                next_step="Put the model and its data into one folder, and save it again.",
            )
        _set_location(tensor, str(place))
    for tensor in every_tensor(model):
        _check_size(path, tensor)
    return model


def _check_size(path: Path, tensor: TensorProto) -> None:
    """Raise ExportError where a tensor's bytes, in this file or in another, are not as many as it needs."""
    external = tensor.data_location == TensorProto.EXTERNAL
    if not external and not tensor.HasField("raw_data"):
        return
    try:
        needed = -(-ir.DataType(tensor.data_type).bitwidth * math.prod(tensor.dims) // 8)
    except (TypeError, ValueError):
        return  # no type of fixed size: reading the model says so
    if external:
        held, where = _held_bytes(tensor), f"in {Path(_reference(tensor)['location']).name!r}"
    else:
        held, where = len(tensor.raw_data), "in the file"
    if held != needed:
        raise ExportError(
            f"{path.name} is damaged: the tensor {tensor.name!r} of shape {list(tensor.dims)} needs {needed} bytes, "
            f"and {held} are {where}",
            next_step="Export or copy it again.",
        )


def _held_bytes(tensor: TensorProto) -> int:
    """Return how many of a tensor's bytes lie in its other file, 0 where its place is no place there."""
    reference = _reference(tensor)
    size = Path(reference["location"]).stat().st_size
    offset, length = reference.get("offset", "0"), reference.get("length")
    if not offset.isdecimal() or not (length is None or length.isdecimal()):
        return 0
    left = max(0, size - int(offset))
    return left if length is None else min(int(length), left)


def external_tensors(model: onnx.ModelProto) -> tuple[TensorProto, ...]:
    """Return the tensors whose values lie in another file."""
    return tuple(tensor for tensor in every_tensor(model) if tensor.data_location == TensorProto.EXTERNAL)


def is_large(model: onnx.ModelProto) -> bool:
    """Return whether a model, together with its weights in other files, is too large for one file."""
    return int(model.ByteSize()) + sum(_length(tensor) for tensor in external_tensors(model)) > THRESHOLD_BYTES


def externalize(model: onnx.ModelProto, path: Path) -> None:
    """Write all but small tensors to `path`, one behind the other, and let `model` refer to them there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    places: list[tuple[TensorProto, int, int]] = []
    try:
        with os.fdopen(descriptor, "wb") as file:
            for tensor in every_tensor(model):
                if tensor.data_location != TensorProto.EXTERNAL and tensor.ByteSize() < INLINE_BYTES:
                    continue
                offset = file.seek(-file.tell() % _ALIGNMENT_BYTES, os.SEEK_CUR)
                length = sum(file.write(chunk) for chunk in _chunks(tensor))
                places.append((tensor, offset, length))
        Path(temporary).chmod(0o644)  # mkstemp makes files private
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    for tensor, offset, length in places:
        _refer(tensor, str(path.resolve()), offset, length)


def relative_copy(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Path]:
    """Return a copy whose locations are plain file names, and the folder in which they lie."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    folders = set()
    for tensor in external_tensors(copy):
        place = Path(_reference(tensor)["location"])
        folders.add(place.parent)
        _set_location(tensor, place.name)
    assert len(folders) == 1, f"weights of one model in {len(folders)} folders"
    return copy, folders.pop()


def check_model(model: onnx.ModelProto) -> None:
    """Run ONNX's checker, full; where weights lie in other files it takes a file among them, not a model in memory."""
    if not external_tensors(model):
        onnx.checker.check_model(model, full_check=True)
        return
    copy, folder = relative_copy(model)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".check.", suffix=".onnx") as file:
        file.write(copy.SerializeToString())
        file.flush()
        onnx.checker.check_model(file.name, full_check=True)


def create_session(model: onnx.ModelProto | bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Load a model that is not on disk, or only its weights, in ONNX Runtime on the CPU."""
    if isinstance(model, onnx.ModelProto):
        if external_tensors(model):
            model, folder = relative_copy(model)
            options.add_session_config_entry(_FOLDER_OPTION, str(folder))
        model = model.SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _reference(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _length(tensor: TensorProto) -> int:
    reference = _reference(tensor)
    if "length" in reference:
        return int(reference["length"])
    return Path(reference["location"]).stat().st_size - int(reference.get("offset", 0))


def _chunks(tensor: TensorProto) -> Iterable[bytes]:
    """Yield a tensor's values as bytes, little endian, without holding those of a file at once."""
    if tensor.data_location != TensorProto.EXTERNAL:
        yield tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
        return
    reference, left = _reference(tensor), _length(tensor)
    with Path(reference["location"]).open("rb") as file:
        file.seek(int(reference.get("offset", 0)))
        while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk


def _set_location(tensor: TensorProto, location: str) -> None:
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = location


def _refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
