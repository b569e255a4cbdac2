"""One kill: start a command, end it where it was drawn, look at what is left, and call it again."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil

from tsexport.bench.suites.fault_cases import BUILDS, NAME, PYTHON, Case, Templates, verifies
from tsexport.bench.suites.fault_records import CacheState, Draw, Kill, Undisturbed
from tsexport.cache import code_digest, sound_entry
from tsexport.errors import InconclusiveError

VICTIM = Path(__file__).with_name("fault_victim.py")
LONGEST_SECONDS = 600.0
ORPHAN_SECONDS = 20.0
INTERRUPTED = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 128 + signal.SIGTERM, "SIGINT": 130}
"""What a command ends with that was ended by a signal."""
BEFORE_PYTHON = {-signal.SIGTERM, -signal.SIGINT, 130, 1}
"""And where the signal came while Python was starting, before anything was written."""
START = "start"
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Place:
    """A round's folders."""

    root: Path

    @property
    def output(self) -> Path:
        return self.root / "out"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    @property
    def under(self) -> dict[str, str]:
        return {"output": str(self.output), "cache": str(self.cache), "temporary": str(self.temporary)}

    def environment(self) -> dict[str, str]:
        """Return what a command of this round runs in."""
        return {**os.environ, "TSEXPORT_CACHE": str(self.cache), "TMPDIR": str(self.temporary)}

    def hidden(self) -> list[str]:
        """Return what a kill may leave: hidden names in output and cache, and anything in the temporary folder."""
        return sorted(
            str(path.relative_to(self.root))
            for folder in (self.output, self.cache, self.temporary)
            for path in _walk(folder)
            if path.name.startswith(".") or path.parent == self.temporary
        )


def _walk(folder: Path) -> Iterator[Path]:
    """Yield what lies under a folder; what lies in a hidden folder is not looked at."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        yield path
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from _walk(path)


def make_place(root: Path, case: Case, cache: CacheState, made: Templates) -> Place:
    """Make a round's folders as the case starts from them."""
    shutil.rmtree(root, ignore_errors=True)
    place = Place(root)
    for folder in (place.output, place.temporary):
        folder.mkdir(parents=True)
    made.fill_cache(place.cache, cache)
    case.start(place.output)
    return place


def undisturbed(case: Case, cache: CacheState, made: Templates, root: Path) -> Undisturbed:
    """Run a command to its end, and count its changes.

    Raises:
        InconclusiveError: it failed, or left something.
    """
    place = make_place(root, case, cache, made)
    began = time.perf_counter()
    process = _start(case, place, None, 0, "SIGKILL")
    with process:
        _, stderr = process.communicate(timeout=LONGEST_SECONDS)
    seconds = time.perf_counter() - began
    if process.returncode not in case.again_codes or place.hidden():
        raise InconclusiveError(f"{case.name} ended with {process.returncode}, left {place.hidden()}: {stderr[-600:]}")
    counts = json.loads((root / "counts.json").read_text())
    return Undisturbed(case.name, cache, seconds, counts["output"], counts["cache"], counts["temporary"])


def kill_once(case: Case, draw: Draw, expected: Undisturbed, made: Templates, root: Path) -> Kill:
    """Carry out one drawn kill, and return what came of it."""
    place = make_place(root, case, draw.cache, made)
    at = 1 + int(draw.share * expected.changes(draw.place)) if draw.how == "change" else 0
    began = time.perf_counter()
    process = _start(case, place, draw.place if draw.how == "change" else None, at, draw.signal)
    with process:
        children = _follow(process, draw.share * expected.seconds if draw.how == "moment" else None, draw.signal)
        seconds = time.perf_counter() - began
    stderr = (root / "stderr.txt").read_text(errors="replace")
    ended = {INTERRUPTED[draw.signal], *BEFORE_PYTHON}
    reached = "victim: " in stderr if draw.how == "change" else process.returncode in ended
    orphans = len(psutil.wait_procs(children, timeout=ORPHAN_SECONDS)[1])
    state, left = case.state_of(place.output), place.hidden()
    entries = [path for path in place.cache.glob("*/*") if _KEY.fullmatch(path.name)]  # neither hidden ones nor turns
    damaged = sum(sound_entry(path) is None for path in entries)
    began = time.perf_counter()
    again = subprocess.run(
        [*PYTHON, *_filled(case.again, place)], env=place.environment(), capture_output=True, text=True,
        timeout=LONGEST_SECONDS,
    )  # fmt: skip
    next_seconds = time.perf_counter() - began
    kill = Kill(
        draw, reached, _after(draw, stderr), process.returncode, round(seconds, 3), state, len(entries), damaged,
        len(left), orphans, again.returncode, round(next_seconds, 3), len(place.hidden()), (), code_digest()[:12],
    )  # fmt: skip
    problems = [*_problems(case, kill, stderr), *_problems_after(case, kill, place, again.stderr)]
    return replace(kill, problems=tuple(problems))


def _filled(arguments: tuple[str, ...], place: Place) -> list[str]:
    return [one.replace("{out}", str(place.output)) for one in arguments]


def _start(case: Case, place: Place, at_place: str | None, at: int, name: str) -> "subprocess.Popen[str]":
    plan = {
        "under": place.under, "place": at_place, "at": at, "signal": int(signal.Signals[name]),
        "counts": str(place.root / "counts.json"),
    }  # fmt: skip
    (place.root / "plan.json").write_text(json.dumps(plan))
    with (place.root / "stderr.txt").open("w") as stderr:
        return subprocess.Popen(
            [PYTHON[0], str(VICTIM), str(place.root / "plan.json"), *_filled(case.arguments, place)],
            env=place.environment(), stdout=subprocess.DEVNULL, stderr=stderr, text=True,
            # A shell starts what runs in the background with SIGINT ignored, and that is inherited.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip


def _follow(process: "subprocess.Popen[str]", kill_after: float | None, name: str) -> list[psutil.Process]:
    """Wait for a command, ending it when it is time; return every process that it started."""
    began, sent = time.perf_counter(), False
    seen: dict[int, psutil.Process] = {}
    while process.poll() is None:
        try:
            seen |= {one.pid: one for one in psutil.Process(process.pid).children(recursive=True)}
        except psutil.Error:
            continue
        spent = time.perf_counter() - began
        if kill_after is not None and not sent and spent >= kill_after:
            process.send_signal(signal.Signals[name])
            sent = True
        if spent > LONGEST_SECONDS:
            process.kill()
        time.sleep(0.02 if kill_after is None else min(0.02, max(0.0, kill_after - spent) or 0.02))
    return list(seen.values())


def _after(draw: Draw, stderr: str) -> str:
    """Return which file was about to be changed, or which step of a build was done last."""
    lines = stderr.replace("\r", "\n").splitlines()
    if draw.how == "change":
        return next((_kind(line.removeprefix("victim: ")) for line in lines if line.startswith("victim: ")), "end")
    steps = [line.partition("] ")[2].partition(":")[0] for line in lines if line.startswith("[") and "] " in line]
    return steps[-1] if steps else START


def _kind(path: str) -> str:
    """Return a changed file's name without what differs from run to run."""
    name = Path(path).name
    return ".".join(part for part in name.split(".") if not any(letter.isdigit() for letter in part)) or "a folder"


def _problems(case: Case, kill: Kill, stderr: str) -> Iterator[str]:
    """Yield what is not as it is promised right after a kill."""
    allowed = {INTERRUPTED[kill.draw.signal], *case.again_codes}
    allowed |= BEFORE_PYTHON if kill.after == START and kill.draw.how == "moment" else set()
    if kill.code not in allowed:
        yield f"ended with {kill.code}: {stderr[-400:]}"
    if kill.state == "damaged":
        yield "what stands at the output is neither the old nor the new"
    if kill.damaged_entries:
        yield f"{kill.damaged_entries} damaged entries stand in the cache"
    if kill.orphans:
        yield f"{kill.orphans} processes were left"
    if kill.left and kill.draw.signal != "SIGKILL" and kill.code == INTERRUPTED[kill.draw.signal]:
        yield f"{kill.draw.signal} left hidden files"


def _problems_after(case: Case, kill: Kill, place: Place, stderr: str) -> Iterator[str]:
    """Yield what is not as it is promised after the next call."""
    if kill.next_code not in case.again_codes:
        yield f"the next one ended with {kill.next_code}: {stderr[-400:]}"
    if case.state_of(place.output) not in ("new", "old" if case.name == BUILDS[1] else "new"):
        yield f"after the next one the output is {case.state_of(place.output)}"
    if case.name in BUILDS and not verifies(place.output / NAME):
        yield "the next bundle does not verify"
    if kill.left_after:
        yield f"left after the next one: {', '.join(place.hidden()[:3])}"
