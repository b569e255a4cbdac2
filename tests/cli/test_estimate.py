"""`tsexport estimate`: the table, one JSON document, the largest batch, and what is refused."""

import json
import math

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import tsexport
from tsexport import cli
from tsexport.bench.published_memory import published_memory
from tsexport.errors import UsageError
from tsexport.estimating import LARGEST_ASKED, largest_batch

MODEL = ("lstm", "--set", "size=small")


def estimate(*arguments):
    return CliRunner().invoke(cli.main, ["estimate", *map(str, arguments)], prog_name="tsexport")


@pytest.mark.slow
def test_a_published_size_stands_beside_ours():
    result = estimate(*MODEL, "--target", "cpu4-fp32", "--batch", 256)
    assert result.exit_code == 0, result.output
    assert "onnxruntime" in result.stdout
    assert "800 MB, off by" in result.stdout
    assert "container of 12 GiB" in result.stdout


@pytest.mark.slow
def test_one_json_document_that_adds_up():
    result = estimate(*MODEL, "--target", "cpu4-int8", "--batch", 8, "--json", "--quiet")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["schema_version"] == 1
    assert document["kind"] == "estimated"
    assert [one["runtime"] for one in document["runtimes"]] == ["onnxruntime", "openvino", "torchscript"]
    for one in document["runtimes"]:
        assert one["total_bytes"] == sum(one["parts"].values())
        assert one["process_bytes"] > one["total_bytes"]
        assert one["largest"][0]["batch"] > 8


@pytest.mark.slow
def test_a_jetson_shares_its_memory_with_the_system():
    found = tsexport.estimate("dlinear", "jetson-fp16", device="jetson-nano", batch=1)
    (row,) = found.runtimes
    (largest,) = row.largest
    assert row.runtime == "tensorrt"
    assert largest.limit.limit_bytes == 4_000_000_000 - 1_500_000_000
    assert any("the system keeps 1.5 GB" in note for note in found.notes)
    assert any("never measured" in note for note in found.notes)


@pytest.mark.slow
def test_a_configuration_file_is_read_and_overridden(tmp_path):
    config = tmp_path / "estimate.toml"
    config.write_text("[model]\nhidden = 8\nlayers = 1\n")
    small = tsexport.estimate("lstm", "cpu4-fp32", config=config)
    large = tsexport.estimate("lstm", "cpu4-fp32", config=config, set={"hidden": 64})
    assert small.parameters < large.parameters


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("lstm", "--target", "cpu4-fp32", "--batch", 0), 2, "batch is 0; allowed are whole numbers from 1 to"),
        (("lstn", "--target", "cpu4-fp32"), 2, "did you mean 'lstm'"),
        (("lstm", "--target", "cpu4-fp23"), 2, "did you mean 'cpu4-fp32'"),
        (("lstm", "--target", "jetson-int8", "--device", "jetson-nano"), 5, "no INT8 arithmetic"),
        (("lstm", "--target", "cpu4-fp32", "--config", "nowhere.toml"), 2, "nowhere.toml cannot be read"),
    ],
)
def test_what_is_refused(arguments, code, message):
    result = estimate(*arguments)
    assert result.exit_code == code
    assert message in result.stderr


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(1, 10**9))
@settings(deadline=None)
def test_the_largest_batch_fits_and_the_next_one_does_not(per_sample, fixed, limit):
    found = largest_batch(lambda batch: fixed + per_sample * batch, limit)
    exact = max(0, math.floor((limit - fixed) / per_sample))
    assert found == (None if exact >= LARGEST_ASKED else exact)


def test_every_published_figure_is_there_and_says_by_how_much_it_misses():
    rows = published_memory()
    assert len(rows) == 13
    assert sum(one.batch is not None for one in rows) == 9
    lstm = next(one for one in rows if one.model == "lstm" and one.size == "small")
    assert lstm.misses_by(80e6) == pytest.approx(10)
    assert lstm.misses_by(8e9) == pytest.approx(10)


def test_a_batch_below_one_is_refused_in_python_too():
    with pytest.raises(UsageError, match="batch is -1"):
        tsexport.estimate("lstm", "cpu4-fp32", batch=-1)
