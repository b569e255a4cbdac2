"""Keep what C++ code prints off this process's standard output.

A failing TorchScript-based ONNX export prints the whole graph from C++, past `contextlib.redirect_stdout`; with
`--json` that would spoil the one document on standard output.  Standard error is left alone: progress is shown there.
"""

import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STDOUT = 1


def _flush() -> None:
    sys.stdout.flush()
    # C's own buffer, which holds text back when standard output is a file or a pipe
    ctypes.CDLL(None).fflush(None)


@contextmanager
def captured_stdout() -> Iterator[Callable[[], str]]:
    """Redirect file descriptor 1 for the whole process; the function that is yielded reads what was printed so far."""
    _flush()
    saved = os.dup(STDOUT)
    with tempfile.TemporaryFile() as sink:

        def read() -> str:
            _flush()
            return os.pread(sink.fileno(), os.fstat(sink.fileno()).st_size, 0).decode(errors="replace")

        os.dup2(sink.fileno(), STDOUT)
        try:
            yield read
        finally:
            _flush()
            os.dup2(saved, STDOUT)
            os.close(saved)
