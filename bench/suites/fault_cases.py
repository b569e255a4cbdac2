"""The commands that the fault suite ends: what they start from, how they are called, and what may stand afterwards."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tsexport.bench.suites.fault_records import CacheState, State
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import MEASUREMENTS, SIGNATURE, check_sums
from tsexport.errors import InconclusiveError, TsexportError
from tsexport.measurements.history_files import read_recordings
from tsexport.types import file_sha256

MODEL, TARGET, DEVICE_TARGET = "dlinear", "cpu4-fp32", "jetson-fp16"
NAME, DEVICE_NAME = "bundle", "device-bundle"
BUILDS = ("build", "build --force")
OPTIONS = ("--seconds", "0.05", "--batch", "1", "--formats", "onnx", "--runtime", "onnxruntime")
PART_OF_CACHE = ("parity", "accuracy", "times")
"""Stages whose entries a "part" cache lacks."""
ROOT = Path(__file__).resolve().parent.parent.parent
STAND_IN = ROOT / "tests" / "device" / "stand_in_trtexec.py"


@dataclass(frozen=True)
class Case:
    """A command: `arguments` begin it, `again` is what is called afterwards; both may name "{out}".

    `start` fills the output folder, `state_of` says what stands there.  `again_codes` are the exit codes that are right
    afterwards.
    """

    name: str
    arguments: tuple[str, ...]
    again: tuple[str, ...]
    start: Callable[[Path], None]
    state_of: Callable[[Path], State]
    caches: tuple[CacheState, ...] = ("full",)
    places: tuple[str, ...] = ("output",)
    again_codes: frozenset[int] = field(default_factory=lambda: frozenset({0}))


@dataclass(frozen=True)
class Templates:
    """What the rounds start from, made once: a bundle, one for a device with results, a full cache, and a key."""

    folder: Path

    @property
    def bundle(self) -> Path:
        return self.folder / "dist" / NAME

    @property
    def device_bundle(self) -> Path:
        return self.folder / "dist" / DEVICE_NAME

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def fill_cache(self, place: Path, state: CacheState) -> None:
        """Make a round's cache."""
        if state == "empty":
            place.mkdir()
            return
        shutil.copytree(self.cache, place)
        for stage in PART_OF_CACHE if state == "part" else ():
            shutil.rmtree(place / stage, ignore_errors=True)


def make_templates(folder: Path) -> Templates:
    """Build both bundles, measure the one for a device with a stand-in for trtexec, and make a key.

    Raises:
        InconclusiveError: one of the commands failed.
    """
    made = Templates(folder)
    environment = {**os.environ, "TSEXPORT_CACHE": str(made.cache)}
    for name, target in ((NAME, TARGET), (DEVICE_NAME, DEVICE_TARGET)):
        _run(build_arguments(target, name, folder / "dist"), environment)
    _run(("openssl", "genpkey", "-algorithm", "ed25519", "-out", str(made.key)), environment)
    tools = folder / "tools"
    tools.mkdir()
    (tools / "trtexec").write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{STAND_IN}" "$@"\n')
    (tools / "trtexec").chmod(0o755)
    (folder / "board").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    device = {
        **os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "STAND_IN_DEVICE": "Orin", "STAND_IN_CAPABILITY": "8.7",
        "STAND_IN_MS": "2.5", "KIT_MODEL_FILE": str(folder / "board"), "STAND_IN_VERSION": "10.3.0",
    }  # fmt: skip
    for script in ("build_engine.sh", "measure.sh"):
        kit = made.device_bundle / "device" / script
        _run(("bash", str(kit), "--output", str(made.results)), device)
    return made


def build_arguments(target: str, name: str, output: Path | str, *more: str) -> tuple[str, ...]:
    """Return the command line of a build, Python's first."""
    return (*PYTHON, "build", MODEL, "--target", target, "-o", str(output), "--name", name, *OPTIONS, *more)


PYTHON = (sys.executable, "-m", "tsexport")


def _run(command: tuple[str, ...], environment: Mapping[str, str]) -> None:
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr)[-600:]
        raise InconclusiveError(f"{' '.join(command)} ended with {done.returncode}: {said}")


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under a folder."""
    return {str(path.relative_to(folder)): file_sha256(path) for path in folder.rglob("*") if path.is_file()}


def cases(made: Templates) -> tuple[Case, ...]:
    """Return every command that is ended, builds first."""
    old = digests(made.bundle)
    build = build_arguments(TARGET, NAME, "{out}")[len(PYTHON) :]
    force = (*build, "--force")
    bundle, device = "{out}/" + NAME, "{out}/" + DEVICE_NAME
    page = b"<html>old</html>"
    builds: tuple[CacheState, ...] = ("full", "part", "empty")
    everywhere = ("output", "cache", "temporary")

    def with_bundle(folder: Path) -> None:
        shutil.copytree(made.bundle, folder / NAME)

    def with_signed(folder: Path) -> None:
        with_bundle(folder)
        (folder / NAME / SIGNATURE).write_bytes(bytes(64))

    def with_device_bundle(folder: Path) -> None:
        shutil.copytree(made.device_bundle, folder / DEVICE_NAME)

    def with_page(folder: Path) -> None:
        with_bundle(folder)
        (folder / "report.html").write_bytes(page)

    sign = ("sign", bundle, "--key", str(made.key), "--force")
    attach = ("attach", device, str(made.results))
    bench = ("bench", bundle, "--seconds", "0.1", "--batch", "1", "--record", "{out}/kept")
    report = ("report", bundle, "-o", "{out}/report.html")
    return (
        Case(BUILDS[0], build, force, _nothing, lambda out: _bundle_state(out / NAME, {}), builds, everywhere),
        Case(BUILDS[1], force, force, with_bundle, lambda out: _bundle_state(out / NAME, old), builds, everywhere),
        Case("sign", sign, sign, with_bundle, lambda out: _signed_state(out / NAME, None)),
        Case("sign --force", sign, sign, with_signed, lambda out: _signed_state(out / NAME, bytes(64))),
        Case(
            "attach", attach, attach, with_device_bundle, lambda out: _attached_state(out / DEVICE_NAME),
            again_codes=frozenset({0, 2, 4}),
        ),
        Case("bench --record", bench, bench, with_bundle, _kept_state, again_codes=frozenset({0, 4, 6})),
        Case("report", report, report, with_page, lambda out: _page_state(out / "report.html", page)),
    )  # fmt: skip


def _nothing(folder: Path) -> None:
    pass


def _bundle_state(bundle: Path, old: dict[str, str]) -> State:
    if not bundle.exists():
        return "none"
    if digests(bundle) == old:
        return "old"
    return "new" if verifies(bundle) else "damaged"


def verifies(bundle: Path) -> bool:
    """Return whether a bundle is whole, and answers as its golden outputs say."""
    try:
        with open_bundle(bundle) as opened:
            return bool(opened.verify())
    except TsexportError:
        return False


def _is_whole(bundle: Path) -> bool:
    try:
        return check_sums(bundle) > 0
    except (TsexportError, OSError):
        return False


def _signed_state(bundle: Path, old: bytes | None) -> State:
    if not _is_whole(bundle):
        return "damaged"
    signature = (bundle / SIGNATURE).read_bytes() if (bundle / SIGNATURE).exists() else None
    if signature == old:
        return "old"
    return "new" if signature is not None and len(signature) == 64 and signature != bytes(64) else "damaged"


def _attached_state(bundle: Path) -> State:
    if not _is_whole(bundle):
        return "damaged"
    return "new" if list((bundle / MEASUREMENTS).glob("device-*.json")) else "old"


def _kept_state(out: Path) -> State:
    if not _is_whole(out / NAME):
        return "damaged"
    if not (out / "kept").exists() or not [path for path in (out / "kept").rglob("*.json")]:
        return "none"
    try:
        return "damaged" if read_recordings(out / "kept").skipped else "new"
    except TsexportError:
        return "damaged"


def _page_state(page: Path, old: bytes) -> State:
    if not page.exists():
        return "none"
    content = page.read_bytes()
    if content == old:
        return "old"
    return "new" if content.rstrip().endswith(b"</html>") and content != old else "damaged"
