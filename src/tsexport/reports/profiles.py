"""Profiles of a bundle as rows of the report."""

from dataclasses import dataclass

from tsexport.bench.profile_records import PROFILES, ProfileRecord, read_profile
from tsexport.bench.rows import milliseconds
from tsexport.bundles.bundle import Bundle
from tsexport.bundles.checksums import MEASUREMENTS
from tsexport.wording import percent_text


@dataclass(frozen=True)
class ProfileRow:
    """One node, or one kind of operator, as text; `share_percent` of the sum over all nodes, for a bar."""

    name: str
    operator: str
    kernel: str
    nodes: str
    time: str
    share: str
    share_percent: float


@dataclass(frozen=True)
class ProfileView:
    """A profile as text; `nodes` ends with a row for those that are not named, `node_count` counts them with the rest.

    `file` is where the record lies in its bundle, "" where it lies nowhere.
    """

    record: ProfileRecord
    file: str
    node_count: int
    operators: tuple[ProfileRow, ...]
    nodes: tuple[ProfileRow, ...]
    plain: str
    profiled: str
    overhead: str


@dataclass(frozen=True)
class ProfileFile:
    """A profile, and where it lies in its bundle."""

    path: str
    record: ProfileRecord


def read_profiles(bundle: Bundle) -> tuple[ProfileFile, ...]:
    """Return the profiles of a bundle: the selected artifact's at batch 1 first on each machine, then by file name.

    Raises:
        BundleError: one of them cannot be read.
    """
    folder = bundle.path / MEASUREMENTS / PROFILES
    # "<machine>.json" is that of the selected artifact, and "." sorts behind "-".
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stem)
    return tuple(ProfileFile(f"{MEASUREMENTS}/{PROFILES}/{path.name}", read_profile(path)) for path in paths)


def profile_view(record: ProfileRecord, file: str = "") -> ProfileView:
    """Return a profile as text, its times as shares of the sum over all nodes; `file` is where it lies."""
    total = record.nodes_ms

    def row(name: str, operator: str, kernel: str, nodes: int, mean_ms: float) -> ProfileRow:
        share = mean_ms / total if total > 0 else 0.0
        return ProfileRow(
            name, operator, kernel, str(nodes), milliseconds(mean_ms), percent_text(share), round(100 * share, 2)
        )

    nodes = [row(one.name, one.operator, one.kernel, 1, one.mean_ms) for one in record.nodes]
    if record.rest_nodes:
        nodes.append(row(f"{record.rest_nodes} other nodes", "", "", record.rest_nodes, record.rest_ms))
    return ProfileView(
        record=record,
        file=file,
        node_count=len(record.nodes) + record.rest_nodes,
        operators=tuple(row("", one.operator, "", one.nodes, one.mean_ms) for one in record.operators),
        nodes=tuple(nodes),
        plain=milliseconds(record.plain_ms),
        profiled=milliseconds(record.profiled_ms),
        overhead=percent_text(record.overhead),
    )
