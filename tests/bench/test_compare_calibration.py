"""The suites that say how often compare is right: what they count, keep and report."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tsexport.bench.affinity import choose_cpus
from tsexport.bench.comparing import Contender, Setting, time_pair
from tsexport.bench.noise import NoiseWatch
from tsexport.bench.process import write_feeds
from tsexport.bench.suites import compare_calibration, compare_rule
from tsexport.bench.suites.compare_calibration import main, share
from tsexport.bench.suites.compare_rule import draw_pair, simulate
from tsexport.bundles.checksums import seal
from tsexport.bundles.manifest import manifest_text, parse_manifest
from tsexport.targets import parse_target

SLOWED = Path(compare_calibration.__file__).with_name("slowed_worker.py")


@pytest.fixture
def here(bundle_folder):
    """The example bundle, for this machine's CPU."""
    path = bundle_folder / "manifest.json"
    manifest = parse_manifest(path.read_text())
    path.write_text(manifest_text(replace(manifest, target=parse_target("cpu4-int8"))))
    seal(bundle_folder)
    return bundle_folder


def test_a_slowed_worker_is_slower_by_what_it_was_told(short_chain, feeds, tmp_path):
    """A wait cannot be shorter than it is; the rest of a call may vary."""
    delay_ns = 2_000_000
    sides = (
        Contender(short_chain, "onnxruntime"),
        Contender(short_chain, "onnxruntime", (sys.executable, "-P", str(SLOWED), str(delay_ns))),
    )
    cpus = choose_cpus(1)
    pair = time_pair(sides, write_feeds(feeds, tmp_path), Setting(feeds, 1, 1, cpus), NoiseWatch(cpus))
    fastest = [min(min(blocks) for blocks in side) for side in (pair.base_ms, pair.candidate_ms)]
    assert fastest[1] >= delay_ns / 1e6
    assert fastest[1] - fastest[0] >= 0.5 * delay_ns / 1e6


def test_a_slowed_worker_answers_as_the_plain_one_to_what_it_does_not_know():
    done = subprocess.run([sys.executable, "-P", str(SLOWED), "5"], input="{}\n", capture_output=True, text=True)
    assert json.loads(done.stdout)["kind"] == "Failed"


@pytest.mark.slow
def test_runs_are_kept_and_taken_again(here, tmp_path, capsys):
    """Runs too short to decide anything: what is kept, resumed and reported does not depend on that."""
    output = tmp_path / "calibration.json"
    options = ["--bundle", str(here), "--runs", "1", "--max-seconds", "0.5", "--output", str(output)]
    assert main(options) == 0
    first = json.loads(output.read_text())
    assert [(run["kind"], run["verdict"]) for run in first["runs"]] == [
        ("same", "inconclusive"),
        ("slower", "inconclusive"),
    ]
    assert first["runs"][0]["delay_ns"] == 0
    assert first["runs"][1]["delay_ns"] > 0
    assert sorted(path.name for path in output.with_suffix(".partial").iterdir()) == [
        "001-same.json",
        "001-slower.json",
    ]
    assert main([*options[:3], "3", *options[4:], "--resume", "--minutes", "0"]) == 0
    again = json.loads(output.read_text())
    assert (again["runs"], again["wanted"]) == (first["runs"], 3)
    text = output.with_suffix(".md").read_text()
    assert "1 same and 1 slower of 3 each" in text
    assert "0 of 1" in text
    assert main([*options, "--resume", "--minutes", "0", "--threshold", "4%"]) == 0
    assert json.loads(output.read_text())["runs"] == []  # other settings: nothing counts
    assert "not measured" in output.with_suffix(".md").read_text()
    capsys.readouterr()


@pytest.mark.slow
def test_a_run_that_resumes_compares_the_bundle_that_was_built_for_it(tmp_path, capsys):
    output = tmp_path / "calibration.json"
    options = ["--runs", "1", "--max-seconds", "0.5", "--output", str(output)]
    assert main(options) == 0
    first = json.loads(output.read_text())
    (manifest,) = output.with_suffix(".partial").glob("bundle/*/manifest.json")
    built = manifest.stat().st_mtime_ns
    assert main([*options, "--resume", "--minutes", "0"]) == 0
    assert json.loads(output.read_text())["runs"] == first["runs"]
    assert manifest.stat().st_mtime_ns == built
    capsys.readouterr()


def test_shares_have_exact_bounds():
    """Clopper and Pearson: of no success in n the upper bound is 1 - 0.025^(1/n)."""
    never = share("red", 0, 100, "never")
    assert (never.low, never.high) == (0.0, pytest.approx(1 - 0.025**0.01))
    always = share("caught", 20, 20, "at least 95%")
    assert (always.low, always.high) == (pytest.approx(0.025 ** (1 / 20)), 1.0)
    nothing = share("red", 0, 0, "never")
    assert (nothing.low, nothing.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "0"], "--runs and --threads are whole numbers from 1 on"),
        (["--slowdown", "10"], "threshold is 10; allowed are changes above 0"),
    ],
)
def test_values_that_are_not_allowed(here, arguments, message, capsys):
    assert main(["--bundle", str(here), *arguments]) == 2
    assert message in capsys.readouterr().err


# --- the rule, simulated ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", compare_rule.LAYOUTS)
def test_two_alike_are_never_red_and_a_slower_one_is_caught(layout):
    """Drawn by a fixed seed; layouts of 1 %."""
    alike, slower = (simulate(layout, 0.01, change, 8, 0) for change in (0.0, 0.10))
    assert alike.regression == alike.improved == 0
    assert slower.regression >= 6
    assert slower.unchanged == slower.improved == 0


def test_a_drawn_pair_is_slower_by_the_change():
    generator = np.random.default_rng(0)
    ratios = [draw_pair(generator, "normal", 0.01, 0.10).ratio for _ in range(200)]
    assert np.exp(np.mean(np.log(ratios))) == pytest.approx(1.10, rel=0.005)  # four standard errors


def test_the_simulation_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare_rule, "SPREADS", (0.01,))
    assert compare_rule.main(["--runs", "1", "--output", str(tmp_path / "rule.json")]) == 0
    cases = json.loads((tmp_path / "rule.json").read_text())["cases"]
    assert len(cases) == 9
    assert all(c["regression"] + c["improved"] + c["unchanged"] + c["inconclusive"] == 1 for c in cases)
    assert "Nothing was timed" in (tmp_path / "rule.md").read_text()
    with pytest.raises(SystemExit):
        compare_rule.main(["--runs", "0"])
    capsys.readouterr()
