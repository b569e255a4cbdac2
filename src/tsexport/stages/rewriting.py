"""Which rewrites an artifact is made with: a rewrite that brings nothing for a model on a runtime is not applied there.

For each runtime the artifact with every rewrite is held, side by side, against the one without each rewrite for speed,
and against the plain export.  A rewrite stays where it is faster beyond the noise, or where it may be as fast and makes
the graph smaller.  Where the plain export beats what is left, beyond the noise, the plain export ships.  What is
decided stands in selection.json, so that `--selection` repeats it without measuring; what was measured is not kept.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.bench.statistics import Ratio
from tsexport.bundles.manifest import RewriteChoice, RewriteRecord, RewriteVerdict
from tsexport.errors import ExportError, ParityError, TsexportError
from tsexport.types import Artifact, Feeds

if TYPE_CHECKING:
    from tsexport.exporters.conversion import Converted
    from tsexport.exporters.rewrites.proofs import Applied

SECONDS = 0.3
"""For each contestant of a comparison, once there are rounds enough for an interval."""

TOGETHER = "not tried alone, since every export of this model takes long"

Convert = Callable[[Path, Collection[str]], "Converted"]
Compare = Callable[[Sequence[Artifact], str], Sequence[Ratio | None]]
"""How many times faster each artifact is than the first on a runtime; None where the runtime cannot run it."""


@dataclass
class Variants:
    """One format's artifact, made without some of the rewrites; each is made once, in a folder of its own.

    `speed` are the names of the rewrites that are tried one by one, `every` those that the plain export is without.
    `costly` says that each variant takes long: then all rewrites together are held against none of them.
    """

    folder: Path
    file_name: str
    convert: Convert
    every: frozenset[str]
    speed: frozenset[str]
    costly: bool = False
    _made: "dict[frozenset[str], Converted | None]" = field(default_factory=dict)

    def make(self, without: Collection[str] = ()) -> "Converted":
        """Return the artifact without these rewrites.  Raises ExportError and ParityError."""
        key = frozenset(without)
        made = self._made.get(key)
        if made is None:
            named = "-".join(["without", *sorted(key)]) if key else "whole"
            folder = self.folder / ("plain" if key == self.every else named)
            folder.mkdir(parents=True, exist_ok=True)
            made = self._made[key] = self.convert(folder / self.file_name, key)
        return made

    def try_to_make(self, without: Collection[str]) -> "Converted | None":
        """Return the artifact without these rewrites, or None where there is none: the export may need one of them."""
        key = frozenset(without)
        if key not in self._made:
            try:
                return self.make(key)
            except (ExportError, ParityError):
                self._made[key] = None
        return self._made[key]


def left_out(choice: RewriteChoice, every: frozenset[str]) -> frozenset[str]:
    """Return the names of the rewrites that are not applied."""
    return every if choice.plain else frozenset(one.rewrite for one in choice.verdicts if not one.applied)


def choose_rewrites(variants: Variants, runtime: str, compare: Compare) -> RewriteChoice:
    """Return which rewrites the artifact for a runtime is made with.

    Args:
        variants: the first, with every rewrite, must export.
        runtime: the runtime that decides.
        compare: measures; called a few times, with a handful of artifacts each.
    """
    without: frozenset[str] = frozenset()
    verdicts: dict[str, RewriteVerdict] = {}
    base = variants.make()
    if not any(one.kept for one in base.rewrites):  # it is the plain export: no second one to make
        return RewriteChoice(runtime, False, ())
    plain = variants.try_to_make(variants.every)
    ahead = False
    while True:
        untried = [one for one in base.rewrites if one.kept and one.name in variants.speed - verdicts.keys()]
        if variants.costly:
            verdicts, untried = {one.name: RewriteVerdict(one.name, True, TOGETHER) for one in untried}, []
        rivals = {one.name: variants.try_to_make(without | {one.name}) for one in untried}
        speeds = _speeds([base, *rivals.values(), plain], runtime, compare)
        if speeds[id(base)] is None:  # the runtime cannot run it; parity says why
            return RewriteChoice(runtime, False, ())
        ahead = plain is not None and _is_ahead(speeds[id(plain)])
        for name, rival in rivals.items():
            verdicts[name] = _judge(name, runtime, base, rival, None if rival is None else speeds[id(rival)])
        dropped = frozenset(name for name in rivals if not verdicts[name].applied)
        if not dropped:
            return RewriteChoice(runtime, ahead, () if ahead else tuple(verdicts.values()))
        without |= dropped
        narrower = variants.try_to_make(without)
        if narrower is None:  # each can be left out alone, and not all together
            needed = {n: RewriteVerdict(n, True, "the export needs it where others are left out") for n in dropped}
            return RewriteChoice(runtime, ahead, () if ahead else tuple({**verdicts, **needed}.values()))
        base = narrower


def _speeds(made: "Sequence[Converted | None]", runtime: str, compare: Compare) -> "Mapping[int, Ratio | None]":
    """Return the speed of each against the first, by id; one that stands there twice is measured once."""
    different = list({id(one): one for one in made if one is not None}.values())
    if len(different) == 1:
        return {id(different[0]): Ratio(1.0, 1.0, 1.0, 0.95)}
    ratios = compare([one.artifact for one in different], runtime)
    return {id(one): ratio for one, ratio in zip(different, ratios, strict=True)}


def _is_ahead(speed: Ratio | None) -> bool:
    return speed is not None and speed.high is not None and speed.low > 1.0


def _judge(
    name: str, runtime: str, base: "Converted", rival: "Converted | None", speed: Ratio | None
) -> RewriteVerdict:
    """Return what becomes of a rewrite; `speed` is that of the artifact without it, against the one with it."""
    if rival is None:
        return RewriteVerdict(name, True, "the model cannot be exported without it")
    if speed is None:
        return RewriteVerdict(name, True, f"{runtime} cannot run the artifact without it")
    if speed.high is not None and speed.high < 1.0:
        return RewriteVerdict(name, True, f"faster on {runtime}")
    if _is_ahead(speed):
        return RewriteVerdict(name, False, f"slower on {runtime}")
    if (
        base.nodes <= rival.nodes
        and base.artifact.size_bytes <= rival.artifact.size_bytes
        and ((base.nodes, base.artifact.size_bytes) != (rival.nodes, rival.artifact.size_bytes))
    ):
        return RewriteVerdict(name, True, f"as fast on {runtime}, and the graph is smaller")
    return RewriteVerdict(name, False, f"no faster on {runtime}, and the graph is no smaller")


def compare_in_process(feeds: Feeds) -> Compare:
    """Return the comparison by measuring: batch 1, one thread, in this process, interleaved.

    Args:
        feeds: inputs [samples, ...]; the first row is what is run.
    """

    def compare(artifacts: Sequence[Artifact], runtime: str) -> Sequence[Ratio | None]:
        from contextlib import ExitStack

        from tsexport.bench.side_by_side import time_side_by_side
        from tsexport.runtimes.registry import load

        row = {name: array[:1] for name, array in feeds.items()}
        with ExitStack() as stack:
            calls: dict[int, Callable[[], object]] = {}
            for place, artifact in enumerate(artifacts):
                try:
                    session = stack.enter_context(load(artifact, runtime, threads=1))
                    session.run(row)
                except TsexportError:
                    continue
                calls[place] = lambda session=session: session.run(row)  # type: ignore[misc]
            if 0 not in calls:
                return [None] * len(artifacts)
            ratios = time_side_by_side(list(calls.values()), seconds=SECONDS * len(calls))
        found: Mapping[int, Ratio] = dict(zip(calls, ratios, strict=True))
        return [found.get(place) for place in range(len(artifacts))]

    return compare


def rewrite_records(
    artifact: str, whole: "Converted", made: "Converted", choice: RewriteChoice
) -> tuple[RewriteRecord, ...]:
    """Return the manifest's records of an artifact: what was applied, and what was not, and why.

    Args:
        artifact: its name.
        whole: what every rewrite would have given.
        made: what is shipped.
    """
    why = {one.rewrite: one.why for one in choice.verdicts}
    done = [record_of(artifact, one, why.get(one.name, "")) for one in made.rewrites]
    names = {one.name for one in made.rewrites}
    for one in whole.rewrites:
        if one.name not in names and one.kept:
            reason = f"the plain export is faster on {choice.runtime}" if choice.plain else why.get(one.name, "")
            done.append(RewriteRecord(artifact, one.name, 0, one.nodes_before, one.nodes_before, 0.0, False, reason))
    return tuple(done)


def record_of(artifact: str, one: "Applied", why: str) -> RewriteRecord:
    """Return the manifest's record of a rewrite of an artifact; `why` says why it was kept."""
    return RewriteRecord(
        artifact=artifact,
        name=one.name,
        matches=one.changes if one.kept else 0,
        nodes_before=one.nodes_before,
        nodes_after=one.nodes_after if one.kept else one.nodes_before,
        max_abs_error=one.max_abs_error if one.kept else 0.0,
        applied=one.kept,
        reason=why if one.kept else one.reason,
    )
