"""Load and run an artifact in a process of its own first, on runtimes whose failure can end the process.

tract's bindings do not pass Rust's panics on: an operator that meets values or shapes it cannot take aborts whoever
called it.  ONNX Runtime's optimizer has ended its process on fp16 graphs.  A build that is about to use an artifact
there for the first time lets another process try.
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tsexport.errors import UsageError
from tsexport.npz import write_arrays
from tsexport.runtimes.registry import load
from tsexport.types import Artifact, Feeds, TensorSpec

CAN_END_THE_PROCESS = frozenset({"tract"})
ENDS_IT_IN = frozenset({("onnxruntime", "fp16")})
"""Runtimes that could do so with artifacts of one precision."""
TIMEOUT_SECONDS = 300.0
_RAISED = 1
"""The exit code of a Python exception: the caller will meet the same one, and can handle it."""
_PANIC = re.compile(r"panicked at [^\n]*\n(.+)")


def rehearse(artifact: Artifact, runtime: str, feeds: Sequence[Feeds], timeout_s: float = TIMEOUT_SECONDS) -> None:
    """Load an artifact and run it on all feeds in a fresh process, where `runtime` could end this one; else nothing.

    Raises:
        UsageError: that process was ended, or did not finish in time.
    """
    if runtime not in CAN_END_THE_PROCESS and (runtime, artifact.precision) not in ENDS_IT_IN:
        return
    with tempfile.TemporaryDirectory(prefix="tsexport-rehearsal-") as folder:
        record = json.dumps([runtime, asdict(artifact)], default=str)
        arrays = {f"{i}/{name}": array for i, one in enumerate(feeds) for name, array in one.items()}
        write_arrays(Path(folder) / "feeds.npz", arrays)
        command = (sys.executable, "-P", "-m", "tsexport.runtimes.rehearsal", str(Path(folder) / "feeds.npz"))
        try:
            done = subprocess.run(command, input=record, capture_output=True, text=True, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise UsageError(f"{runtime} did not answer to {artifact.name} in {timeout_s:g} s") from error
    if done.returncode not in (0, _RAISED):
        code = done.returncode
        ending = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        panic = _PANIC.search(done.stderr)
        reason = f": {panic[1].strip()}" if panic else ""
        raise UsageError(f"{runtime} refuses {artifact.name}: its process ended with {ending}{reason}")


def main(record: str, feeds_path: Path) -> None:
    """Load the artifact that a record describes, and run it on every set of feeds in a file."""
    runtime, fields = json.loads(record)
    for kind in ("inputs", "outputs"):
        fields[kind] = tuple(TensorSpec(one["name"], one["dtype"], tuple(one["shape"])) for one in fields[kind])
    fields |= {"path": Path(fields["path"]), "files": tuple(map(Path, fields["files"]))}
    fields["options"] = tuple((key, value) for key, value in fields["options"])
    sets: dict[str, dict[str, np.ndarray]] = {}
    with np.load(feeds_path, allow_pickle=False) as archive:
        for key in archive.files:
            number, _, name = key.partition("/")
            sets.setdefault(number, {})[name] = archive[key]
    with load(Artifact(**fields), runtime, threads=1) as session:
        for feeds in sets.values():
            session.run(feeds)


if __name__ == "__main__":
    main(sys.stdin.read(), Path(sys.argv[1]))
