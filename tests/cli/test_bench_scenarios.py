"""`tsexport bench --scenario`: each scenario of a real bundle, exit codes, records, and what is refused."""

import dataclasses
import json

import pytest
from click.testing import CliRunner

from tsexport import cli
from tsexport.bench.scenario_records import SCENARIOS, read_scenario, write_scenario
from tsexport.cli.scenario import _OWNERS, _PLAIN_ONLY, _SCENARIOS
from tsexport.errors import UsageError
from tsexport.measurements.scenarios import ScenarioOptions, run_scenario

QUICK = ("--seconds", "0.05", "--threads", "1")


def bench(*arguments):
    return CliRunner().invoke(cli.main, ["bench", *map(str, arguments)], prog_name="tsexport")


def test_single_stream_prints_percentiles_and_keeps_a_record(bundle_folder, tmp_path):
    result = bench(bundle_folder, "--scenario", "single-stream", *QUICK, "--record", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "p90" in result.stdout
    assert "no MLPerf result" in result.stderr
    (path,) = (tmp_path / "tiny-cpu4-int8" / "scenarios").glob("single-stream-*.json")
    record = read_scenario(path)
    assert record.single_stream.queries >= 1024
    assert record.server is record.offline is record.memory is None


def test_offline_gives_throughput_over_batch_sizes(bundle_folder):
    result = bench(bundle_folder, "--scenario", "offline", *QUICK, "--json")
    assert result.exit_code == 0, result.stderr
    (one,) = json.loads(result.stdout)["bundles"]
    points = one["record"]["offline"]["points"]
    assert [point["batch"] for point in points] == [1, 2, 4, 8, 16, 32, 64]


def test_server_holds_a_rate_or_ends_with_4(bundle_folder):
    easy = bench(bundle_folder, "--scenario", "server", "--qps", "3000", "--p99-ms", "10000", *QUICK)
    assert easy.exit_code == 0, easy.stderr
    assert "3000 queries/s is the highest valid rate" in easy.stdout
    impossible = bench(bundle_folder, "--scenario", "server", "--qps", "3000", "--p99-ms", "1e-6", *QUICK)
    assert impossible.exit_code == 4
    assert "no rate held a p99 of 1e-06 ms (as asked); the lowest tried was 3000" in impossible.stderr


def test_memory_shows_peak_and_growth(bundle_folder):
    result = bench(bundle_folder, "--scenario", "memory", "--growth-calls", "400", "--threads", "1")
    assert result.exit_code == 0, result.stderr
    assert "above idle" in result.stdout
    assert "0 of 400 calls\n" in result.stderr
    assert "400" in result.stdout


def test_memory_that_grows_ends_with_how_much(bundle_folder):
    record = run_scenario(bundle_folder, "memory", ScenarioOptions(threads=1, growth_calls=10))
    assert record.failure == ""
    growth = dataclasses.replace(record.memory.growth, half_bytes=0, end_bytes=3 << 20, calls=10_000)
    grown = dataclasses.replace(record, memory=dataclasses.replace(record.memory, growth=growth))
    assert grown.failure == "memory grew by 3.00 MiB over the last 5,000 calls; allowed is 1 MiB"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scenario", "sever"), "did you mean 'server'"),
        (("--scenario", "server", "--qps", "0"), "qps is 0; allowed are numbers above 0"),
        (("--scenario", "server", "--p99-ms", "-1"), "p99-ms is -1; allowed are numbers above 0"),
        (("--scenario", "server", "--seconds", "0"), "seconds is 0; allowed are numbers above 0"),
        (("--scenario", "server", "--seconds", "1e5"), "seconds is 100000; allowed are at most 86400, a day"),
        (
            ("--scenario", "server", "--qps", "1e-9"),
            "qps is 1e-09; a p99 needs 662 queries, which would take",
        ),
        (("--scenario", "server", "--max-batch", "65"), "max-batch is 65; allowed are whole numbers from 1 to 64"),
        (("--scenario", "server", "--seed", "-1"), "seed is -1; allowed are whole numbers from 0 to"),
        (("--scenario", "memory", "--growth-calls", "0"), "growth-calls is 0; allowed are whole numbers from 1 on"),
        (("--scenario", "memory", "--batch", "0"), "batch is 0; allowed are whole numbers from 1 on"),
        (("--scenario", "memory", "--threads", "0"), "threads is 0; allowed are whole numbers from 1 on"),
        (("--scenario", "server", "--runtime", "openvin"), "has nothing for runtime 'openvin'"),
        (("--scenario", "offline", "--batch", "4"), "--batch with --scenario is for memory"),
    ],
)
def test_what_is_refused(bundle_folder, arguments, message):
    result = bench(bundle_folder, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_what_cannot_be_kept_is_not_measured(bundle_folder, tmp_path):
    (tmp_path / "file").write_text("")
    result = bench(bundle_folder, "--scenario", "single-stream", *QUICK, "--record", tmp_path / "file")
    assert result.exit_code == 2
    assert f"the result cannot be kept in {tmp_path}/file: File exists" in result.stderr
    assert "after the warm-up" not in result.stderr
    with pytest.raises(UsageError, match=r"the result cannot be kept in .*file"):
        write_scenario(run_scenario(bundle_folder, "memory", ScenarioOptions(growth_calls=2)), tmp_path / "file")


def test_all_bundles_are_opened_before_the_first_is_measured(bundle_folder, tmp_path):
    result = bench(bundle_folder, tmp_path / "nothing", "--scenario", "single-stream", *QUICK)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: there is no bundle")


SERVER_OPTIONS = ("--qps", "--p99-ms", "--max-batch", "--seed")


@pytest.mark.parametrize("option", SERVER_OPTIONS)
@pytest.mark.parametrize("scenario", ["single-stream", "offline", "memory"])
def test_an_option_of_server_is_refused_with_another_scenario(bundle_folder, option, scenario):
    result = bench(bundle_folder, "--scenario", scenario, option, "5")
    assert result.exit_code == 2
    assert f"{option} is for --scenario server alone, and --scenario is {scenario}" in result.stderr


@pytest.mark.parametrize("scenario", ["single-stream", "offline", "server"])
def test_calls_of_growth_are_refused_with_another_scenario(bundle_folder, scenario):
    result = bench(bundle_folder, "--scenario", scenario, "--growth-calls", "5")
    assert result.exit_code == 2
    assert f"--growth-calls is for --scenario memory alone, and --scenario is {scenario}" in result.stderr


def test_seconds_are_refused_with_memory(bundle_folder):
    result = bench(bundle_folder, "--scenario", "memory", "--seconds", "5")
    assert result.exit_code == 2
    assert "--seconds is not for --scenario memory" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [("--table", "own.toml"), ("--commit", "abc"), ("--junit", "x.xml"), ("--summary", "x.md"), ("--container",)],
)
def test_an_option_of_the_plain_measurement_is_refused_with_a_scenario(bundle_folder, arguments):
    result = bench(bundle_folder, "--scenario", "offline", *arguments)
    assert result.exit_code == 2
    assert f"{arguments[0]} is for a measurement without --scenario alone" in result.stderr


@pytest.mark.parametrize(
    ("option", "value", "scenario"),
    [
        *((option, "5", "--scenario server") for option in SERVER_OPTIONS),
        ("--growth-calls", "10000", "--scenario memory"),  # its default, but it was given
        ("--runtime", "openvino", "--scenario"),
    ],
)
def test_an_option_of_a_scenario_is_refused_without_it(bundle_folder, option, value, scenario):
    result = bench(bundle_folder, option, value)
    assert result.exit_code == 2
    assert f"{option} is for {scenario} alone; give it with that" in result.stderr


def test_every_scenario_option_has_an_owner():
    """A new option that is in neither table would be ignored where it says nothing."""
    command = cli.main.get_command(None, "bench")
    common = {"bundles", "batches", "threads", "seconds", "record", "as_json", "scenario", "help", "profile", "attach"}
    assert {parameter.name for parameter in command.params} - common == set(_OWNERS) | _PLAIN_ONLY
    assert _SCENARIOS == SCENARIOS


def test_a_runtime_that_is_not_here_is_inconclusive(bundle_folder, monkeypatch):
    monkeypatch.setattr("tsexport.measurements.scenarios.list_statuses", lambda: ())
    result = bench(bundle_folder, "--scenario", "single-stream", *QUICK)
    assert result.exit_code == 6
    assert "runs on onnxruntime, which is not installed here" in result.stderr
