"""Profiles of a bundle as rows of the report."""

from dataclasses import dataclass

from tsexport.bench.profile_records import PROFILES, ProfileRecord, read_profile
from tsexport.bench.rows import milliseconds
from tsexport.bundles import Bundle
from tsexport.checksums import MEASUREMENTS
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
    """A profile as text; `nodes` ends with a row for those that are not named, where there are any."""

    record: ProfileRecord
    operators: tuple[ProfileRow, ...]
    nodes: tuple[ProfileRow, ...]
    plain: str
    profiled: str
    overhead: str


def read_profiles(bundle: Bundle) -> tuple[ProfileRecord, ...]:
    """Return the profiles of a bundle, by file name.

    Raises:
        BundleError: one of them cannot be read.
    """
    return tuple(map(read_profile, sorted((bundle.path / MEASUREMENTS / PROFILES).glob("*.json"))))


def profile_view(record: ProfileRecord) -> ProfileView:
    """Return a profile as text, its times as shares of the sum over all nodes."""
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
        operators=tuple(row("", one.operator, "", one.nodes, one.mean_ms) for one in record.operators),
        nodes=tuple(nodes),
        plain=milliseconds(record.plain_ms),
        profiled=milliseconds(record.profiled_ms),
        overhead=percent_text(record.overhead),
    )
