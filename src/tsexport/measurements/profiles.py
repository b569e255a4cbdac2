"""`tsexport bench --profile`: where the time of one call goes, for each artifact of a bundle, here and now."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tsexport.bench.affinity import threads_text
from tsexport.bench.fingerprint import fingerprint
from tsexport.bench.profile_records import ProfileRecord, write_profile
from tsexport.bench.profiling import profile
from tsexport.bundles.bundle import Bundle, open_bundle
from tsexport.bundles.golden import INPUTS, read_golden
from tsexport.bundles.loading import cores_here
from tsexport.bundles.manifest import SelectedArtifact
from tsexport.bundles.structure import check_structure
from tsexport.errors import UsageError
from tsexport.measurements.adding import add_records, require_unpacked
from tsexport.measurements.timing_pairs import timing_pairs_here
from tsexport.turns import measuring_alone

SECONDS_EACH = 3
"""What a profile takes, roughly: loading twice, and half a second of calls with the profiler and without."""


@dataclass(frozen=True)
class BundleProfiles:
    """The profiles of one bundle; `kept` are their files within it, () where they were not to be kept."""

    bundle: str
    profiles: tuple[ProfileRecord, ...]
    kept: tuple[str, ...] = ()


def profile_bundle(
    bundle: str | Path | Bundle,
    *,
    batch: int = 1,
    threads: int | None = None,
    attach: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> BundleProfiles:
    """Profile every artifact of a bundle on every runtime that is here, each in a fresh process.

    Args:
        bundle: a folder, an archive, or an open bundle; its digests are checked first.
        batch: samples a call.
        threads: by default as many as the bundle was built with, at most the cores here.
        attach: keep the profiles in the bundle itself, in `measurements/profiles/`, and on its report; earlier ones of
            the same artifact, runtime, batch and machine are replaced.
        say: told what is profiled, and how long it will take.

    Raises:
        BundleError: the bundle is damaged.
        UsageError: a value is out of range, or nothing can be attached to the bundle.
        NoRuntimeError: no runtime here runs any of its artifacts.
    """
    for name, count in (("batch", batch), ("threads", threads)):
        if count is not None and count < 1:
            raise UsageError(f"{name} is {count}; allowed are whole numbers from 1 on")
    if not isinstance(bundle, Bundle):
        with open_bundle(bundle) as opened:
            return profile_bundle(opened, batch=batch, threads=threads, attach=attach, say=say)
    if attach:
        require_unpacked(bundle)
    check_structure(bundle)
    manifest, machine = bundle.manifest, fingerprint()
    used = min(threads or bundle.selection.threads, cores_here())
    feeds = read_golden(bundle.path, INPUTS, manifest.artifacts[0].inputs, manifest.golden.samples)
    pairs = timing_pairs_here(manifest, machine).pairs
    found = []
    with measuring_alone(f"{bundle.name}: profiles", say):
        for number, (entry, runtime) in enumerate(pairs):
            left = SECONDS_EACH * (len(pairs) - number)
            say(f"profiling {entry.name} on {runtime}, {threads_text(used)}; about {left} s left")
            artifact = bundle.artifact(entry.name)
            found.append(profile(artifact, runtime, feeds=feeds, threads=used, machine=machine, batch=batch))
    profiles = tuple(found)
    kept: tuple[str, ...] = ()
    if attach:

        def write(measurements: Path) -> tuple[Path, ...]:
            return tuple(
                write_profile(one, measurements, headline=is_headline(one, manifest.selected)) for one in profiles
            )

        kept = add_records(bundle.path, write)
    return BundleProfiles(manifest.name, profiles, kept)


def is_headline(record: ProfileRecord, selected: SelectedArtifact) -> bool:
    """Return whether a profile is what a build keeps: of the selected artifact on its runtime, at batch 1."""
    return (record.artifact, record.runtime, record.batch) == (selected.artifact, selected.runtime, 1)
