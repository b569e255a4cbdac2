"""A folder of kept results as `bench --record` leaves it; latencies are drawn, not measured."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from tsexport.bench.kept_records import KeptArtifact, KeptRecord, time_text, write_kept
from tsexport.bench.records import read_record

BEGIN = datetime(2026, 1, 5, 12, tzinfo=UTC)


@pytest.fixture
def machine_record(measured_folder):
    (path,) = (measured_folder / "measurements").glob("*.json")
    return read_record(path)


@pytest.fixture
def keep(machine_record, tmp_path):
    """Keep one result: latencies around `ms` at batch 1, `day` days after the first."""

    def write(ms=1.0, *, day=0, commit=None, bundle="tiny-cpu4-int8", machine="0123456789ab", samples=100, **changes):
        generator = np.random.default_rng(day)
        times = tuple((ms * (1 + 0.02 * generator.random(samples))).tolist())
        one = replace(machine_record.measurements[0], machine=machine, samples_ms=times)
        here = replace(machine_record.machine, machine_id=machine)
        record = replace(machine_record, machine=here, measurements=(one,), races=(), verdicts=())
        kept = KeptRecord(
            bundle=bundle,
            model="tiny",
            family="linear",
            component=None,
            recorded_at=time_text(BEGIN + timedelta(days=day)),
            commit=f"{day:040x}" if commit is None else commit,
            modified=False,
            artifacts=(KeptArtifact(one.artifact, "fp32", "a" * 64, 1000),),
            record=record,
        )
        return write_kept(replace(kept, **changes), tmp_path / "kept")

    return write


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "kept"


@pytest.fixture
def month(keep, folder):
    """30 days, slower from the 20th on."""
    for day in range(30):
        keep(1.0 if day < 20 else 1.3, day=day)
    return folder
