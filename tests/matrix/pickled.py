"""Which files of a bundle are pickles, or hold some."""

import io
import pickletools
import warnings
import zipfile

import numpy as np


def is_pickle(content):
    """Return whether bytes are a whole pickle, in any protocol."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of escapes in what is no pickle
            *_, (opcode, _, position) = pickletools.genops(content)
    except (ValueError, IndexError, UnicodeDecodeError):
        return False
    return opcode.name == "STOP" and position == len(content) - 1


def pickles(folder):
    """Return the files of a bundle that are pickles or hold some, also within archives."""
    found = set()
    for path in folder.rglob("*"):
        if path.is_file():
            contents = [path.read_bytes()]
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    contents += [archive.read(name) for name in archive.namelist()]
            arrays = [content for content in contents if content.startswith(b"\x93NUMPY")]
            objects = any(
                np.lib.format.read_magic(io.BytesIO(content)) and b"'|O'" in content[:200] for content in arrays
            )
            if objects or any(map(is_pickle, contents)):
                found.add(path.relative_to(folder).as_posix())
    return found
