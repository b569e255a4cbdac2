"""The suite of pruning: one whole run on a tiny model, and what a wrong use says."""

import json

import pytest

from tsexport.bench.suites import pruning


@pytest.mark.slow
def test_a_run_on_a_tiny_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TSEXPORT_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "p.json"
    settings = [word for one in ("filters=16", "blocks=1", "kernels=5,3") for word in ("--set", one)]
    given = ["--model", "inception-time", *settings, "--seconds", "0.3", "--output", str(output)]
    assert pruning.main(given) == 0
    (row,) = json.loads(output.read_text())["rows"]
    assert row["speedup"]["value"] > 0
    assert row["pruning"]["parameters"]["after"] < row["pruning"]["parameters"]["before"]
    assert row["parameters"] in ("met", "missed")
    assert "x speed" in capsys.readouterr().out


def test_a_model_that_cannot_be_pruned_ends_it(tmp_path, capsys):
    assert pruning.main(["--fraction", "2", "--output", str(tmp_path / "p.json")]) == 2
    assert "prune is 2.0; allowed are fractions between 0 and 1" in capsys.readouterr().err
