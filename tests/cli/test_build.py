"""`tsexport build` as it is typed: what is refused before and while it works, and every exit code 2.

Whole builds are in tests/pipeline.  Nothing here measures: each build ends before it comes to that.
"""

import json
import re

import numpy as np
import pytest

LINEAR = ["--set", "context_length=8", "--set", "horizon=4", "--set", "channels=2"]
X = "series"


def refused(result, message, code=2):
    """The message is on stderr, nothing on stdout, no traceback."""
    assert result.exit_code == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.fixture
def windows(tmp_path):
    """Write windows for the small `linear`."""

    def write(name, samples=120, change=None, **more):
        generator = np.random.default_rng(1)
        arrays = {
            X: generator.standard_normal((samples, 8, 2)).astype(np.float32),
            "target": generator.standard_normal((samples, 4, 2)).astype(np.float32),
            **more,
        }
        if change:
            change(arrays)
        path = tmp_path / name
        np.savez(path, **arrays)
        return path

    return write


# --- usage -----------------------------------------------------------------------------------------------------------


def test_what_is_missing(build):
    refused(build(), "MODEL is missing: give it on the command line or as model in the --config file")
    refused(build("linear"), "--target is missing")
    refused(build("linear", "--target", "cpu4-fp32"), "-o is missing")


@pytest.fixture
def refused_before_any_work(build, tmp_path):
    def run(arguments, message, code=2):
        refused(build(*arguments, "-o", "dist"), message, code)
        assert list((tmp_path / "work").iterdir()) == []
        assert not (tmp_path / "cache").exists()

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["patchtst-gpu", "--target", "cpu4-fp32"], "there is no model 'patchtst-gpu' (did you mean 'patchtst"),
        (["nothing.onnx", "--target", "cpu4-fp32"], "there is no file nothing.onnx"),
        (["mine:make:", "--target", "cpu4-fp32"], "is not of the form module:factory"),
        (["linear", "--target", "cpu4-int9"], "unknown target 'cpu4-int9' (did you mean 'cpu4-int8'?)"),
        (["hrm-27m", "--target", "cpu4-fp32", "--component", "l-modul"], "no component 'l-modul' (did you mean 'l-mo"),
        (["hrm-27m", "--target", "cpu4-fp32", "--component", "stream-step"], "Add --set causal=true."),
        (["mine:make", "--target", "cpu4-fp32", "--include-preprocessing"], "knows no series for mine:make"),
        (["mine:make", "--target", "cpu4-int8"], "cpu4-int8 calibrates on data like the model's own, and for mine:"),
    ],
)
def test_models_and_targets_that_are_refused(refused_before_any_work, arguments, message):
    refused_before_any_work(arguments, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "avx"], "unknown device 'avx' for cpu4-fp32 (did you mean"),
        (["--runtime", "tract2"], "unknown runtime 'tract2' (did you mean 'trac"),
        (["--formats", "onnx,tflite"], "formats is 'tflite'; allowed are onnx, "),
        (["--metric", "mape"], "metric is 'mape' (did you mean 'mae'?)"),
        (["--objective", "speed"], "objective is 'speed'; allowed are latency"),
        (["--max-degradation", "x"], "'x' is neither a fraction such as 0.05 nor"),
        (["--max-degradation", "-1%"], "max_degradation is -0.01; allowed are"),
        (["--batch", "0"], "batch is [0]; allowed are whole numbers from 1 on"),
        (["--threads", "0"], "threads is 0; allowed are whole numbers from 1 on"),
        (["--seconds", "0"], "seconds is 0.0; allowed are numbers above 0"),
        (["--seed", "-1"], "seed is -1; allowed are whole numbers from 0"),
        (["--name", "a/b"], "name is 'a/b'; allowed is a folder name without"),
        (["--set", "horizon"], "--set 'horizon' has no form key=value"),
        (["--set", "=3"], "--set '=3' has no form key=value"),
        (["--set", "horizn=3"], "no setting 'horizn' (did you mean 'horizon'?)"),
        (["--set", "horizon=x"], "horizon is 'x'; it must be a whole number"),
        (["--component", "l-module"], "it is built whole, it has no components"),
        (["--input", "x=4,2"], "'x=4,2' does not describe an input"),
        (["--config", "no.toml"], "--config no.toml cannot be read: No such file"),
        (["--table", "no.toml"], "the latency tables no.toml cannot be read"),
        (["--checkpoint", "no.pth"], "there is no checkpoint no.pth"),
        (["--calibration", "no.npz"], "no.npz is not a file; expected calibrati"),
        (["--evaluation", "no.npz"], "no.npz is not a file; expected calibratio"),
    ],
)
def test_options_that_are_refused(refused_before_any_work, options, message):
    refused_before_any_work(["linear", "--target", "cpu4-fp32", *options], message)


def test_arithmetic_that_another_machine_has_not_is_refused(refused_before_any_work):
    arguments = ["linear", "--target", "cpu4-bf16", "--device", "avx2"]
    refused_before_any_work(arguments, "cpu4-bf16 needs arithmetic in bf16 (AVX512_BF16, AMX or Arm's), and", code=5)


def test_a_device_without_the_targets_arithmetic_is_refused(refused_before_any_work):
    arguments = ["linear", "--target", "jetson-int8", "--device", "jetson-nano"]
    refused_before_any_work(arguments, "jetson-nano", code=5)


def test_an_own_checkpoint_for_int8_says_what_to_give(build, tmp_path):
    import torch

    path = tmp_path / "mine.pth"
    torch.save({"a": torch.ones(1)}, path)
    result = build("linear", "--target", "cpu4-int8", "-o", "dist", "--checkpoint", path)
    refused(result, "error: cpu4-int8 calibrates on data like the model's own, and for linear none was given\n")
    assert result.stderr.endswith(
        "give --calibration FILE: .npz of arrays named as the inputs, or csv or parquet with [series]\n"
    )


def test_an_existing_bundle_needs_force(build, tmp_path):
    place = tmp_path / "work" / "dist" / "linear-cpu4-fp32"
    place.mkdir(parents=True)
    (place / "manifest.json").write_text("{}")
    result = build("linear", "--target", "cpu4-fp32", "-o", "dist")
    refused(result, "linear-cpu4-fp32 is there already")
    assert "give --force to replace it, or another name with --name" in result.stderr


def test_force_replaces_bundles_only(build, tmp_path):
    place = tmp_path / "work" / "dist" / "linear-cpu4-fp32"
    place.mkdir(parents=True)
    (place / "thesis.txt").write_text("irreplaceable")
    refused(build("linear", "--target", "cpu4-fp32", "-o", "dist", "--force"), "holds something other than a bundle")
    assert (place / "thesis.txt").read_text() == "irreplaceable"


def test_an_output_that_is_a_file(build, tmp_path):
    (tmp_path / "work" / "dist").write_text("a file")
    refused(build("linear", "--target", "cpu4-fp32", "-o", "dist"), "dist is a file, and a folder is needed")


def test_the_command_line_over_a_file(build, tmp_path):
    (tmp_path / "build.toml").write_text("""
        [build]
        model = "dlinear"
        target = "cpu4-int8"
        output = "from-file"
        name = "from-file"
        [model]
        horizon = 24
        channels = 3
    """)
    config = ("--config", tmp_path / "build.toml", "--dry-run", "--json")
    assert json.loads(build(*config).stdout)["path"] == str(tmp_path / "from-file" / "from-file")
    over = json.loads(build("linear", "--target", "cpu4-fp32", "-o", "here", "--name", "x", *config).stdout)
    assert (over["model"], over["target"], over["path"]) == ("linear", "cpu4-fp32", "here/x")


# --- data that cannot be used ----------------------------------------------------------------------------------------


def with_nan(arrays):
    arrays[X][70, 3, 1] = np.nan


def with_infinity(arrays):
    arrays[X][3, 3, 1] = np.inf


def with_constant(arrays):
    arrays[X][:, :, 1] = 2.0


def with_another_name(arrays):
    arrays["x"] = arrays.pop(X)


def with_one_more(arrays):
    arrays["extra"] = arrays[X]


def with_another_shape(arrays):
    arrays[X] = arrays[X][:, :7]


def with_another_dtype(arrays):
    arrays[X] = arrays[X].astype(np.int64)


def with_another_target(arrays):
    arrays["target"] = arrays["target"][:, :3]


def with_nan_in_target(arrays):
    arrays["target"][5, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            with_nan,
            "input 'series' has 1 NaN or infinite values in 1 samples; the first is nan in sample sample:000070",
        ),
        (with_infinity, "the first is inf in sample sample:000003 at [3, 1]"),
        (with_constant, "input 'series', feature 1 (always 2). A constant feature has no range"),
        (with_another_name, "the data lacks the input 'series' and has array that the model does not take: 'x'"),
        (with_one_more, "has array that the model does not take: 'extra'; the model's inputs are series float32["),
        (with_another_shape, "input 'series' has samples of shape [7, 2]; the model takes [8, 2]"),
        (with_another_dtype, "input 'series' has dtype int64; the model takes float32"),
        (with_another_target, "the target has shape [64, 3, 2] and the output [64, 4, 2]"),
        (with_nan_in_target, "the target has 1 NaN or infinite values in 1 samples"),
    ],
)
def test_arrays_that_do_not_fit(build, windows, tmp_path, change, message):
    path = windows("data.npz", change=change)  # so few that calibration and evaluation together read them all
    result = build("linear", *LINEAR, "--target", "cpu4-int8", "-o", "dist", "--calibration", path)
    refused(result, message)
    assert not (tmp_path / "work" / "dist").exists()


def test_too_few_samples(build, windows):
    result = build("linear", *LINEAR, "--target", "cpu4-int8", "-o", "dist", "--calibration", windows("a.npz", 20))
    refused(result, "calibration got 20 samples and needs at least 32")


def test_a_metric_that_the_target_does_not_suit(build, windows):
    options = ("--target", "cpu4-fp32", "-o", "dist", "--evaluation", windows("a.npz"))
    refused(build("linear", *LINEAR, *options, "--metric", "accuracy"), "a classifier answers one score per class")
    refused(build("linear", *LINEAR, *options, "--metric", "pinball"), "needs the levels of the model's quantiles")


def test_files_of_data_that_are_none(build, tmp_path):
    options = ("linear", *LINEAR, "--target", "cpu4-int8", "-o", "dist", "--calibration")
    (tmp_path / "a.npz").write_text("no zip")
    refused(build(*options, tmp_path / "a.npz"), "a.npz")
    (tmp_path / "a.txt").write_text("1 2 3")
    refused(build(*options, tmp_path / "a.txt"), "a.txt has a suffix that is not read; allowed are .npz, .csv, .csv.gz")
    refused(build(*options, tmp_path), "is not a file; expected calibration or evaluation data")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("series", "message"),
    [
        ('columns = ["a", "z"]', "'z'"),
        ('columns = ["a"]', "input 'series' has samples of shape [8, 1]; the model takes [8, 2]"),
        ('colums = ["a"]', "has no key 'colums' (did you mean 'columns'?)"),
        ("context_length = 9", "input 'series' has samples of shape [9, 2]; the model takes [8, 2]"),
        ("split = {train = [0, 5000]}", "has 400 rows, and the split 'train' ends at row 5000"),
        ("horizon = 3", "the target has shape"),
    ],
)
def test_series_that_do_not_fit(build, tmp_path, suffix, series, message):
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    values = np.random.default_rng(0).standard_normal((400, 2))
    table = pyarrow.table({"a": values[:, 0], "b": values[:, 1]})
    path = tmp_path / f"data.{suffix}"
    (pyarrow.csv.write_csv if suffix == "csv" else pyarrow.parquet.write_table)(table, path)
    (tmp_path / "build.toml").write_text(f"[series]\n{series}\n")
    options = ("--target", "cpu4-int8", "-o", "dist", "--calibration", path, "--config", tmp_path / "build.toml")
    refused(build("linear", *LINEAR, *options), message)


@pytest.mark.parametrize(
    ("series", "message"),
    [
        (
            'scaling = "revin"',
            "--include-preprocessing: windows of the series are [8, 3], and the model takes series fl",
        ),
        (
            'columns = ["a", "b"]\nhorizon = 3',
            "scales the first output back as the series' target, [3, 2] of a, b, and ",
        ),
        (
            'columns = ["a", "b"]\ntarget_columns = ["b", "c"]\nscaling = "revin"',
            "the target column 'c' is not among its columns a, b",
        ),
    ],
)
def test_a_preparation_that_does_not_fit(build, tmp_path, series, message):
    values = np.random.default_rng(0).standard_normal((400, 3))
    path = tmp_path / "data.csv"
    np.savetxt(path, values, delimiter=",", header="a,b,c", comments="")
    (tmp_path / "build.toml").write_text(f"[build]\ninclude-preprocessing = true\n[series]\n{series}\n")
    options = ("--target", "cpu4-fp32", "-o", "dist", "--calibration", path, "--config", tmp_path / "build.toml")
    refused(build("linear", *LINEAR, *options), message)


def test_statistics_for_a_preparation_need_a_series(build, windows):
    options = ("--target", "cpu4-fp32", "-o", "dist", "--include-preprocessing")
    result = build("linear", *LINEAR, *options, "--evaluation", windows("a.npz"))
    refused(result, "puts statistics of your training rows into the graph, and no series was given to take them from")
    assert "give the series as --calibration FILE.csv (or .parquet) with [series] and its split" in result.stderr


def test_a_checkpoint_that_does_not_fit(build, tmp_path):
    import torch

    torch.save({"other.weight": torch.ones(1)}, tmp_path / "mine.pth")
    options = ("--target", "cpu4-fp32", "-o", "dist", "--checkpoint", tmp_path / "mine.pth")
    refused(build("linear", *LINEAR, *options), "mine.pth does not fit linear: missing: ")


def test_a_cache_that_cannot_be_written(build, tmp_path):
    (tmp_path / "cache").write_text("a file")
    result = build("linear", *LINEAR, "--target", "cpu4-fp32", "-o", "dist")
    refused_without_progress = result.stderr.splitlines()
    assert result.exit_code == 2
    assert any("the cache folder" in line and "cannot be written" in line for line in refused_without_progress)
    assert refused_without_progress[-1].startswith("set TSEXPORT_CACHE to a folder that can be written")


def test_json_of_a_build_that_fails_is_empty(build, windows):
    options = ("--target", "cpu4-int8", "-o", "dist", "--json", "--calibration", windows("a.npz", 20))
    refused(build("linear", *LINEAR, *options), "calibration got 20 samples")


def test_the_tables_of_a_build_name_every_candidate_with_its_speed_and_reason(measured_folder, capsys):
    """Latency ratio with interval, size, error, float layers, share in int8; and why the selected is not faster."""
    from dataclasses import replace

    from tsexport.bench.records import Balance, read_record, write_record
    from tsexport.bundles.bundle import open_bundle
    from tsexport.bundles.checksums import seal
    from tsexport.bundles.manifest import manifest_text
    from tsexport.cli.build import _show_bundle
    from tsexport.work import Coverage

    manifest = open_bundle(measured_folder).manifest
    selected, *others = manifest.candidates
    coverage = Coverage(4_000_000, 3_000_000, 40, 6, 900, 100)
    selected = replace(selected, coverage=coverage, recipe={**selected.recipe, "float_layers": ("head",)})
    (measured_folder / "manifest.json").write_text(
        manifest_text(replace(manifest, coverage=coverage, candidates=(selected, *others)))
    )
    (path,) = (measured_folder / "measurements").glob("*.json")
    record = replace(read_record(path), balance=Balance(2, 100.0, 300.0, 20.0, 80.0))
    write_record(record, path.parent)
    seal(measured_folder)
    _show_bundle(open_bundle(measured_folder))
    lines = capsys.readouterr().out.splitlines()
    (candidate,) = (line for line in lines if line.strip().startswith("ort-dynamic-u8"))
    assert re.search(r"1\.\d\dx \(1\.\d\d-1\.\d\d\) +0\.00 MB +1\.00% +\+0\.80% +1 +75% +6 of 40 +selected", candidate)
    (rejected,) = (line for line in lines if "rejected" in line)
    assert re.search(r"0\.\d\dx .* rejected +mse 8 % worse, allowed 5 %", rejected)
    (failed,) = (line for line in lines if "failed" in line)
    assert re.search(r"not measured .* failed +nncf raised: no such operator", failed)
    (why,) = (line for line in lines if "4 M" in line)
    assert re.search(
        r"int8-onnx +4 M +75% +6 of 40 +1 kB +4e\+03 +0\.02 ms +[\d.]+ ms +neither products nor memory", why
    )
