"""golden/inputs.npz and golden/outputs.npz: what the source model was asked, and what it answered.

Arrays are `[samples, ...]` under the tensors' names.  Headers are read before any data, so that an archive that claims
huge arrays is refused without memory being taken for it; pickled objects are never read.
"""

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tsexport.bundles.archives import LIMITS
from tsexport.errors import BundleError
from tsexport.npz import write_arrays
from tsexport.types import Array, TensorSpec

INPUTS, OUTPUTS = "golden/inputs.npz", "golden/outputs.npz"


def write_golden(root: Path, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Write both files below the bundle's folder `root`.  Equal arrays give equal bytes (no times in the archive)."""
    (root / "golden").mkdir(exist_ok=True)
    for name, arrays in ((INPUTS, inputs), (OUTPUTS, outputs)):
        write_arrays(root / name, arrays, compress=True)


def read_golden(root: Path, name: str, specs: tuple[TensorSpec, ...], samples: int) -> dict[str, Array]:
    """Return the arrays of one file, which must be exactly the tensors of `specs` with `samples` rows.

    Raises:
        BundleError: the file is missing or damaged, holds other names, dtypes or shapes, or is a bomb.
    """
    needed_bytes = sum(math.prod(spec.with_batch(samples)) * np.dtype(spec.dtype).itemsize for spec in specs)
    try:
        # The manifest may ask for as much as the archive claims.
        if needed_bytes > (most := LIMITS.bytes_for((root / name).stat().st_size)):
            raise BundleError(
                f"{name} would unpack to {needed_bytes} bytes, far more than its size allows ({most}); it was not read"
            )
        with zipfile.ZipFile(root / name) as archive:
            members = archive.namelist()
            expected = [f"{spec.name}.npy" for spec in specs]
            if sorted(members) != sorted(expected):
                raise BundleError(
                    f"{name} holds {', '.join(members)}; the manifest's tensors need {', '.join(expected)}"
                )
            return {spec.name: _read_array(archive, spec, samples, name) for spec in specs}
    except OSError as error:
        raise BundleError(f"{name} cannot be read: {error.strerror or error}") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError, NotImplementedError) as error:
        raise BundleError(f"{name} is damaged: {error}") from None


def _read_array(archive: zipfile.ZipFile, spec: TensorSpec, samples: int, name: str) -> Array:
    with archive.open(f"{spec.name}.npy") as file:
        shape, dtype = _read_header(file)  # type: ignore[arg-type]  # ZipExtFile reads as a BinaryIO does
    needed = spec.with_batch(samples)
    if shape != needed or dtype != np.dtype(spec.dtype):
        raise BundleError(f"{name}: {spec.name} is {dtype}{list(shape)}, needed is {spec.dtype}{list(needed)}")
    with archive.open(f"{spec.name}.npy") as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("arrays are in .npy format 1.0, this is another")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype
