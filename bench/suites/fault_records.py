"""What the fault suite draws, and what it keeps of each kill."""

from dataclasses import dataclass
from typing import Literal

from tsexport.bench.fingerprint import Machine

SCHEMA_VERSION = 1
How = Literal["moment", "change"]
CacheState = Literal["empty", "part", "full"]
SignalName = Literal["SIGKILL", "SIGTERM", "SIGINT"]
State = Literal["none", "old", "new", "damaged"]


@dataclass(frozen=True)
class Draw:
    """One kill as it was drawn.

    A kill at a "moment" comes `share` of the way through the time that the command took without one.  One at a "change"
    comes before one of the changes that Python makes to files under `place` ("output", "cache" or "temporary"): `share`
    of the way through those that were counted.
    """

    number: int
    case: str
    cache: CacheState
    how: How
    place: str
    share: float
    signal: SignalName

    @property
    def name(self) -> str:
        return f"{self.case.replace(' ', '-')}-{self.number + 1:03d}"


@dataclass(frozen=True)
class Kill:
    """What one kill did, and what came after it.

    Attributes:
        reached: the command was ended by it; false where it was done before.
        after: the last step of the build that was done, "start" before the first; the file at a "change".
        state: what stands at the output: nothing, the old whole, the new whole, or something else.
        entries, damaged_entries: cache entries that stand, and those of them that do not match their digests.
        left: hidden files and folders that the kill left in output, cache and temporary folder.
        orphans: processes of the command that were still there 20 s later.
        next_code, next_seconds: how the same command ended when it was called again.
        left_after: hidden files and folders after that.
        problems: what is not as it is promised; () where all is.
        code_digest: the first digits of the SHA-256 over tsexport's own code.
    """

    draw: Draw
    reached: bool
    after: str
    code: int
    seconds: float
    state: State
    entries: int
    damaged_entries: int
    left: int
    orphans: int
    next_code: int
    next_seconds: float
    left_after: int
    problems: tuple[str, ...]
    code_digest: str


@dataclass(frozen=True)
class Undisturbed:
    """A command that nothing ended: how long it took, and how many changes it made under each place."""

    case: str
    cache: CacheState
    seconds: float
    output_changes: int
    cache_changes: int
    temporary_changes: int

    def changes(self, place: str) -> int:
        """Return the changes under a place."""
        return {"output": self.output_changes, "cache": self.cache_changes, "temporary": self.temporary_changes}[place]


@dataclass(frozen=True)
class Report:
    """Everything that one run of the suite found."""

    suite: str
    machine: Machine
    model: str
    target: str
    seed: int
    undisturbed: tuple[Undisturbed, ...]
    kills: tuple[Kill, ...]
    schema_version: int = SCHEMA_VERSION
