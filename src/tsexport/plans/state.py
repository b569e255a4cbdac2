"""What a plan remembers of its bundles, so that running it again builds only what is missing or out of date.

Beside the bundles, in `<output>/.tsexport-plan/`:

    <name>.json     `BuildState`, written whole before the first stage and after the last
    <name>.lock     there while a process builds the bundle, which holds it, so that no two of one plan do
    <name>.log      all that the building processes wrote, one after the other

A bundle is there already when its state says "built" from the same inputs, its SHA256SUMS is the one that was written
then, and every file still is as the lists say (what `attach` and `sign` add is).  A bundle that a plan built and that
is out of date is replaced; one that nobody knows of, or that was changed since, never is without `force`.

Where a process was killed between the bundle's renaming and the writing of its state, the state says "building", and
the bundle is built again from the cache.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsexport.bundles.checksums import SUMS, check_sums
from tsexport.cache import code_digest, digest_of, tool_versions
from tsexport.codec import decode_versioned, encode, read_text, write_whole
from tsexport.errors import BundleError, UsageError
from tsexport.locks import holding
from tsexport.options import PATHS
from tsexport.plans.records import SCHEMA_VERSION, BuildState
from tsexport.types import file_sha256

if TYPE_CHECKING:
    from tsexport.stages.planned import Plan

FOLDER = ".tsexport-plan"
_FREE = ("output", "force")
"""Options that decide where a bundle lies, and not what it is."""


@dataclass(frozen=True)
class StatePlace:
    """Where the state of one bundle lies."""

    output: Path
    name: str

    @property
    def bundle(self) -> Path:
        return self.output / self.name

    @property
    def folder(self) -> Path:
        return self.output / FOLDER

    @property
    def record(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the bundle's lock while it is built; on a file system without locks, go on without."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with holding(self.folder / f"{self.name}.lock", waiting=lambda holder: None):
            yield

    def read(self) -> BuildState | None:
        """Return the state; None where there is none, or none that can be read."""
        try:
            text = read_text(self.record)
            state = decode_versioned(
                BuildState, text, version=SCHEMA_VERSION, what=self.record.name, next_step="give --force"
            )
        except BundleError:
            return None
        return state if state.name == self.name else None

    def write(self, state: BuildState) -> None:
        """Write the state, whole or not at all."""
        write_whole(self.record, encode(state))

    def sums_sha256(self) -> str:
        """Return the digest of the bundle's SHA256SUMS, "" where there is none."""
        try:
            return file_sha256(self.bundle / SUMS)
        except OSError:
            return ""


def place_of(plan: "Plan") -> StatePlace:
    """Return where the state of a planned bundle lies."""
    return StatePlace(plan.destination.parent, plan.name)


def inputs_digest(plan: "Plan") -> str:
    """Return the digest of all that a bundle depends on: options, content of files, target, code and tools.

    A factory's own files are not among it, since they are known only once it was imported (`BuildState.sources`).
    """
    context = plan.context
    options: dict[str, Any] = {
        name: value
        for name, value in vars(context.options).items()
        if name not in (*_FREE, *PATHS, "name", "model", "target", "device")
    }
    files = {name: _content(path) for name in PATHS if name != "output" and (path := getattr(context.options, name))}
    return digest_of(
        {
            "name": plan.name,
            "model": context.identity.name,
            "model_digest": context.identity.digest,
            "factory": context.identity.model if context.identity.digest is None else "",
            "checkpoint": context.identity.checkpoint_sha256,
            "data": context.plan.digest,
            "target": context.target,
            "threads": context.threads,
            "options": options,
            "files": files,
            "runtimes": plan.runtimes,
            "code": code_digest(),
            "versions": dict(tool_versions()),
        }
    )


def _content(path: Path) -> str:
    """Return a file's name, which the manifest names, and its content."""
    return f"{path.name} {file_sha256(path)}"


def is_there(place: StatePlace, inputs_sha256: str) -> bool:
    """Return whether the bundle was built from these inputs, and no file of it was changed since."""
    state = place.read()
    if state is None or state.status != "built" or state.inputs_sha256 != inputs_sha256:
        return False
    return _unchanged(place, state) and all(_is_same(Path(path), digest) for path, digest in state.sources.items())


def require_replaceable(place: StatePlace) -> None:
    """Raise where a bundle stands in the place that no state knows as this plan's own.

    Raises:
        UsageError: somebody else put it there, or it was changed since the plan built it.
    """
    if not os.path.lexists(place.bundle):
        return
    state = place.read()
    again = "give --force to build it anew, or take it away"
    if state is None or (not state.sums_sha256 and state.status != "building"):
        raise UsageError(f"{place.bundle} is there already, and no plan built it here", next_step=again)
    if state.status != "building" and not _unchanged(place, state):
        raise UsageError(
            f"{place.bundle} was changed since the plan built it: {_change(place, state)}", next_step=again
        )


def begin(place: StatePlace, inputs_sha256: str) -> BuildState:
    """Write that a bundle is being built; return the state."""
    state = BuildState("building", place.name, inputs_sha256, place.sums_sha256())
    place.write(state)
    return state


def finish(place: StatePlace, state: BuildState, sources: Mapping[str, str], seconds: float) -> None:
    """Write that a bundle was built, from these sources besides its inputs."""
    place.write(
        replace(
            state, status="built", sums_sha256=place.sums_sha256(), sources=dict(sources), seconds=round(seconds, 3)
        )
    )


def fail(place: StatePlace, state: BuildState, seconds: float) -> None:
    """Write that a build failed; what stood in its place before is still there."""
    place.write(replace(state, status="failed", seconds=round(seconds, 3)))


def _unchanged(place: StatePlace, state: BuildState) -> bool:
    return not _change(place, state)


def _change(place: StatePlace, state: BuildState) -> str:
    """Return what is different in a bundle from what the state says, "" where nothing is."""
    try:
        sums = (place.bundle / SUMS).read_bytes()
    except OSError as error:
        return f"its {SUMS} cannot be read ({error.strerror})"
    if hashlib.sha256(sums).hexdigest() != state.sums_sha256:
        return f"its {SUMS} is another one"
    try:
        check_sums(place.bundle)
    except (BundleError, OSError) as error:
        return error.message if isinstance(error, BundleError) else str(error)
    return ""


def _is_same(path: Path, digest: str) -> bool:
    try:
        return file_sha256(path) == digest
    except OSError:
        return False
