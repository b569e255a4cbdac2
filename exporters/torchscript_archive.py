"""TorchScript files whose bytes depend on the module alone.

`torch.jit.save` writes a zip archive with fixed times, but with `.debug_pkl` members that hold the source paths of
the machine that traced the module (a bundle holds no paths), and class names numbered by everything that the process
traced before.  Here the module is traced into a compilation unit of its own, so that numbering starts anew, and saved
through a buffer (the archive's folder is named after the file otherwise) without the debug members, which
`torch.jit.load` does not need.
"""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.jit._state

_TIME = (1980, 1, 1, 0, 0, 0)


@contextmanager
def fresh_compilation_unit() -> Iterator[None]:
    """Trace into an empty compilation unit: the same module gets the same class names, whatever was traced before."""
    # torch's C++ side looks this attribute up at every trace; there is no public way to hand a unit over
    state = vars(torch.jit._state)
    before = state["_python_cu"]
    state["_python_cu"] = torch._C.CompilationUnit()
    try:
        yield
    finally:
        state["_python_cu"] = before


def archive_bytes(traced: torch.jit.ScriptModule) -> bytes:
    """Return the traced module as the bytes of a TorchScript file that holds no source paths."""
    saved, cleaned = io.BytesIO(), io.BytesIO()
    torch.jit.save(traced, saved)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(cleaned, "w", zipfile.ZIP_STORED) as target:
        for member in source.infolist():
            # the serialization id is a checksum over the members, the debug ones included
            if not member.filename.endswith((".debug_pkl", "/.data/serialization_id")):
                target.writestr(zipfile.ZipInfo(member.filename, _TIME), source.read(member))
    return cleaned.getvalue()
