"""`tsexport build --table`: a latency table of the user's own decides whether a bundle is left."""

import json
from pathlib import Path

import pytest

OPTIONS = ("linear", "--target", "cpu4-fp32", "-o", "dist", "--formats", "onnx", "--batch", "1", "--seconds", "0.5")


@pytest.mark.slow
def test_a_missed_row_of_the_users_own_table_leaves_no_bundle(build):
    row = 'schema = 1\n[[latency]]\nmodel = "linear"\ndevice = "cpu"\nbatch = 1\nmax_ms = {}\nsource = "our budget"\n'
    Path("tight.toml").write_text(row.format("0.0000001"))
    missed = build(*OPTIONS, "--table", "tight.toml")
    assert missed.exit_code == 4, missed.stderr
    assert "latency budgets missed: p90" in missed.stderr
    assert not Path("dist/linear-cpu4-fp32").exists()
    Path("wide.toml").write_text(row.format("100000.0"))
    kept = build(*OPTIONS, "--table", "wide.toml")
    assert kept.exit_code == 0, kept.stderr
    (record,) = Path("dist/linear-cpu4-fp32/measurements").glob("*.json")
    (verdict,) = json.loads(record.read_text())["verdicts"]
    assert (verdict["status"], verdict["budget"]["source"]) == ("met", "our budget")
