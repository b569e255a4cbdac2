"""What a bundle's `measurements/` holds, read: this machine's and others' records, attached runs, projections."""

from tsexport.bench.device_records import PREFIX, DeviceRecord, read_device_record
from tsexport.bench.outlook import PROJECTED, ProjectionRecord, read_projection
from tsexport.bench.records import MachineRecord, read_record
from tsexport.bundles.bundle import Bundle
from tsexport.bundles.checksums import MEASUREMENTS
from tsexport.errors import BundleError


def read_measurements(bundle: Bundle) -> tuple[MachineRecord, ...]:
    """Return the record of every machine the bundle was measured on, by file name.

    Raises:
        BundleError: one of them cannot be read.
    """
    paths = sorted((bundle.path / MEASUREMENTS).glob("*.json"))
    records = tuple(read_record(path) for path in paths if not path.name.startswith(PREFIX))
    for record in records:
        for measurement in record.measurements:
            if not measurement.samples_ms or min(measurement.samples_ms) <= 0:
                raise BundleError(
                    f"{MEASUREMENTS}: {measurement.artifact} on {measurement.runtime} has no valid samples"
                )
    return records


def read_attached(bundle: Bundle) -> tuple[DeviceRecord, ...]:
    """Return the record of every attached run of the device kit, by file name.

    Raises:
        BundleError: one of them cannot be read.
    """
    return tuple(read_device_record(path) for path in sorted((bundle.path / MEASUREMENTS).glob(f"{PREFIX}*.json")))


def read_projections(bundle: Bundle) -> tuple[ProjectionRecord, ...]:
    """Return what was projected for a bundle, by file name.

    Raises:
        BundleError: one of them cannot be read.
    """
    return tuple(map(read_projection, sorted((bundle.path / MEASUREMENTS / PROJECTED).glob("*.json"))))
