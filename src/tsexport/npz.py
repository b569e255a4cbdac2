"""Named arrays in a file that `numpy.load` reads, the same bytes each time.

`numpy.savez` takes names as keywords, so that an input called "file" fails, and writes the time into every member.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tsexport.types import Array

_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_arrays(path: Path, arrays: Mapping[str, Array], *, compress: bool = False) -> None:
    """Write named arrays to an .npz.  Equal arrays give equal bytes; `compress` costs time and saves space."""
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in sorted(arrays):
            member = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
            member.compress_type = method
            member.external_attr = 0o644 << 16
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(arrays[name], order="C"), version=(1, 0), allow_pickle=False)


def read_arrays(path: Path) -> dict[str, Array]:
    """Read named arrays that this program wrote; nothing in the file is executed."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
