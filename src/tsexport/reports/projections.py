"""Projections of a bundle as rows of the report."""

from dataclasses import dataclass

from tsexport.bench.outlook import ProjectionRecord, outlook_row
from tsexport.bench.projected_rows import KernelRow, ProjectionRow, kernel_rows, projection_rows
from tsexport.bundles.bundle import Bundle
from tsexport.bundles.measured import read_projections


@dataclass(frozen=True)
class ProjectionView:
    """What was projected for one device, as text; `kernels` take longest, of the first of `projections`."""

    record: ProjectionRecord
    projections: tuple[ProjectionRow, ...]
    kernels: tuple[KernelRow, ...]
    outlooks: tuple[tuple[str, ...], ...]


def projection_views(bundle: Bundle) -> tuple[ProjectionView, ...]:
    """Return what was projected for a bundle as text.

    Raises:
        BundleError: as `read_projections`.
    """
    return tuple(
        ProjectionView(
            record=record,
            projections=projection_rows(record.projections),
            kernels=kernel_rows(record.projections[0]) if record.projections else (),
            outlooks=tuple(map(outlook_row, record.outlooks)),
        )
        for record in read_projections(bundle)
    )
