"""What Dask workers are asked to do.  Each task takes one line of JSON and answers with one.

So nothing that a bundle holds goes through Dask: it carries names, paths, options and figures, as text.  The functions
themselves are known to the workers by their names, and tsexport is installed there.
"""

import json
import os
import platform
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from tsexport.cache import code_digest, tool_versions
from tsexport.codec import decode, to_plain
from tsexport.device.kit import DEVICE
from tsexport.device.results import ENGINE
from tsexport.errors import DataError, MissingDependencyError
from tsexport.extras import require
from tsexport.plans.process import EXIT_DIED, build_in_process
from tsexport.plans.records import Job, KitRun, MeasureJob, Row, Surroundings
from tsexport.turns import Turns

T = TypeVar("T")
KIT_SCRIPTS = ("build_engine.sh", "measure.sh")
_POLL_SECONDS = 0.5
_TAIL_LINES = 3


def to_text(record: object) -> str:
    """Return a record as one line of JSON."""
    return json.dumps(to_plain(record))


def from_text(kind: type[T], text: str) -> T:
    """Return the record of a line of JSON.

    Raises:
        DataError: it is none.
    """
    return decode(kind, text, what=f"a message of a Dask task ({kind.__name__})", error=DataError)


def build_task(text: str) -> str:
    """Build what a `Job` asks for, in a process of its own; answer with its `Row`."""
    job = from_text(Job, text)
    if not job.running.exists():
        options = job.options
        reason = f"the plan ended, or {platform.node()} does not see {job.running.parent}"
        row = Row(job.name, options.model, options.target, options.device, job.path, "failed", EXIT_DIED, reason=reason)
        return to_text(row)
    return to_text(build_in_process(job, job.running.exists))


def look_around(paths: Sequence[str]) -> str:
    """Look whether files are seen here, and what runs here; answer with `Surroundings`."""
    try:
        require("build", "building")
        missing = ""
    except MissingDependencyError as error:
        missing = error.message
    unseen = tuple(path for path in paths if not Path(path).is_file())
    return to_text(Surroundings(unseen, code_digest(), dict(tool_versions()), missing))


def measure_task(text: str) -> str:
    """Run a bundle's device kit here, alone on this machine; answer with a `KitRun`."""
    job = from_text(MeasureJob, text)
    kit = job.bundle / DEVICE
    if not kit.is_dir():
        return to_text(KitRun(None, f"{job.bundle.name} has no device kit, since it holds no ONNX file for TensorRT"))
    turns = Turns(job.cache)
    with tempfile.TemporaryDirectory(prefix="tsexport-kit-") as folder, turns.measuring(f"{job.bundle.name}: its kit"):
        output = Path(folder) / "results"
        for script in KIT_SCRIPTS:
            reason = _run_script(kit / script, output, turns, job.running)
            if reason:
                return to_text(KitRun(None, f"{script}: {reason}"))
        return to_text(KitRun(_keep(output, job)))


def _run_script(script: Path, output: Path, turns: Turns, running: Path) -> str:
    """Run a script of a kit; return why it failed, or "".  It is ended where the plan does not run any more."""
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                ["bash", str(script), "--output", str(output)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=turns.descriptors,
            )
        except OSError as error:
            return f"bash does not run here ({error.strerror})"
        while True:
            try:
                code = process.wait(_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if not running.exists():
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    return "the plan ended"
        log.seek(0)
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    if code == 0:
        return ""
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return "; ".join(errors or lines[-_TAIL_LINES:]) or f"it ended with {code} and said nothing"


def _keep(output: Path, job: MeasureJob) -> Path:
    """Put results where all workers see them, whole; the engine stays behind."""
    job.results.mkdir(parents=True, exist_ok=True)
    kept = job.results / f"{job.bundle.name}-{secrets.token_hex(6)}"
    hidden = kept.with_name(f".{kept.name}")
    shutil.copytree(output, hidden, ignore=shutil.ignore_patterns(ENGINE))
    hidden.rename(kept)
    return kept
