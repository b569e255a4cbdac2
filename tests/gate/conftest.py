"""Cases as `bench` and `compare` make them, with the text that people can put into names."""

import pytest

from tsexport.measurements.gating import GateCase, GateReport, GateTable


@pytest.fixture
def report():
    return GateReport(
        "a title",
        (
            GateCase("bundle-a", "latency", "passed", "pass", "1 ms", "p90 1 ms; 2 ms allowed"),
            GateCase("bundle-a", "memory", "failed", "miss", "9 MB", "9 MB; 5 MB allowed"),
            GateCase("bundle-b", "throughput", "skipped", "not measured", "n/a", "over http", seconds=1.5),
        ),
        ("measured here",),
        (GateTable("use cases", ("artifact", "yes?"), (("fp32", "yes"),)),),
    )
