"""What a build is asked to do: the TOML file, the command line over it, and every message of a wrong value."""

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.errors import ConfigurationError
from tsexport.options import METRICS, BuildOptions, merge, read_config
from tsexport.types import FORMATS, TensorSpec

NEEDED = {"model": "linear", "target": "cpu4-fp32", "output": Path("dist")}


@pytest.fixture
def config(tmp_path):
    """Write a configuration file and read it."""

    def read(text: str):
        path = tmp_path / "build.toml"
        path.write_text(text)
        return read_config(path)

    return read


def test_a_file_with_every_table(config, tmp_path):
    (tmp_path / "weights.pth").touch()
    options = merge(
        config("""
            [build]
            model = "linear"
            target = "cpu4-int8"
            output = "dist"
            checkpoint = "weights.pth"
            calibration = "series.csv"
            max-degradation = 0.02
            max_output_error = 1
            batch = [1, 4]
            formats = "onnx, openvino"
            threads = 2
            seconds = 3
            seed = 5
            force = true
            include-preprocessing = true
            [model]
            horizon = 24
            [[inputs]]
            name = "x"
            shape = ["batch", 60, 16]
            [[inputs]]
            name = "mask"
            dtype = "bool"
            shape = ["batch"]
            [series]
            time_column = "date"
        """),
        {},
    )
    assert options == BuildOptions(
        model="linear",
        target="cpu4-int8",
        output=tmp_path / "dist",
        checkpoint=tmp_path / "weights.pth",
        calibration=tmp_path / "series.csv",
        settings={"horizon": 24},
        inputs=(TensorSpec("x", "float32", ("batch", 60, 16)), TensorSpec("mask", "bool", ("batch",))),
        series={"time_column": "date"},
        max_degradation=0.02,
        max_output_error=1,
        batches=(1, 4),
        formats=("onnx", "openvino"),
        threads=2,
        seconds=3,
        seed=5,
        force=True,
        include_preprocessing=True,
    )


def test_a_model_that_is_a_file_is_relative_to_the_configuration(config, tmp_path):
    (tmp_path / "net.onnx").touch()
    (tmp_path / "mine.py").touch()
    assert config('build.model = "net.onnx"')["model"] == str(tmp_path / "net.onnx")
    assert config('build.model = "mine.py:make"')["model"] == f"{tmp_path / 'mine.py'}:make"
    assert config('build.model = "linear"')["model"] == "linear"
    assert config('build.model = "package.mine:make"')["model"] == "package.mine:make"


def test_paths_that_are_absolute_stay(config):
    assert config('build.checkpoint = "/data/weights.pth"')["checkpoint"] == Path("/data/weights.pth")


def test_settings_are_merged_key_by_key(config):
    base = config("[model]\nhorizon = 24\nchannels = 3")
    options = merge(base, {**NEEDED, "settings": {"horizon": 48}})
    assert options.settings == {"horizon": 48, "channels": 3}


@pytest.mark.parametrize("key", ["model", "target", "output"])
def test_what_is_missing_is_named(key):
    given = {name: value for name, value in NEEDED.items() if name != key}
    with pytest.raises(ConfigurationError, match=f"is missing: give it on the command line or as {key} in the"):
        merge({}, given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[bild]", r"has the unknown key 'bild' \(did you mean 'build'\?\); allowed are build, model, inputs, series"),
        ("top = 3", r"has the unknown key 'top'; allowed are"),
        ("build = 3", r"build must be a table, \[build\]"),
        ("model = [1]", r"model must be a table, \[model\]"),
        ("series = 'x'", r"series must be a table, \[series\]"),
        ("[build]\ntargt = 'x'", r"table \[build\], has the unknown key 'targt' \(did you mean 'target'\?\)"),
        ("[build]\nsettings = 3", r"table \[build\], has the unknown key 'settings'"),
        ("[build]\nmax_degradation = '5%'", r"key max_degradation: '5%' is no float"),
        ("[build]\nmax_degradation = true", r"key max_degradation: True is no float"),
        ("[build]\nthreads = 1.5", r"key threads: 1.5 is no int"),
        ("[build]\nseed = 'x'", r"key seed: 'x' is no int"),
        ("[build]\nforce = 1", r"key force: 1 is no bool"),
        ("[build]\ninclude-preprocessing = 'yes'", r"key include_preprocessing: 'yes' is no bool"),
        ("[build]\nmetric = 3", r"key metric: 3 is no str"),
        ("[build]\ncheckpoint = 3", r"key checkpoint: 3 is no str"),
        ("[build]\nbatch = ['x']", r"key batch: 'x' is no int"),
        ("[build]\nbatch = '1,10'", r"key batch: '1' is no int"),
        ("[build]\nbatch = [true]", r"key batch: True is no int"),
        ("[build]\nbatch = 1.5", r"key batches must be a list, got 1.5"),
        ("[build]\nformats = 1.5", r"key formats must be a list, got 1.5"),
        ("inputs = 3", r"inputs must be tables, for example \[\[inputs\]\]"),
        ("[inputs]\nname = 'x'", r"inputs must be tables"),
        ("inputs = ['x']", r"inputs must be tables"),
        ("[[inputs]]\nname = 'x'", r"an input needs a name and a shape"),
        ("[[inputs]]\nname = 3\nshape = ['batch']", r"an input needs a name and a shape"),
        ("[[inputs]]\nname = 'x'\nshap = [1]", r"has the unknown key 'shap' \(did you mean 'shape'\?\)"),
        ("[[inputs]]\nname = 'x'\nshape = [4, 2]", r"the input 'x' has shape \[4, 2\]; it begins with 'batch'"),
        ("[[inputs]]\nname = 'x'\nshape = ['batch', 0]", r"the input 'x' has shape \['batch', 0\]"),
        ("[[inputs]]\nname = 'x'\nshape = ['batch', true]", r"the input 'x' has shape"),
        (
            "[[inputs]]\nname = 'x'\nshape = ['batch']\ndtype = 'float31'",
            r"the input 'x' has dtype 'float31' \(did you mean 'float32'\?\); allowed are float32, float64",
        ),
        ("[build\n", r"build.toml is no TOML: "),
        ("a = " + "[" * 5000, r"build.toml is no TOML: maximum recursion depth"),
        ("a = " + "1" * 5000, r"build.toml is no TOML: Exceeds the limit"),
    ],
)
def test_a_file_that_cannot_be_used(config, text, message):
    with pytest.raises(ConfigurationError, match=message):
        config(text)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(ConfigurationError, match=r"--config .*nothing.toml cannot be read: No such file"):
        read_config(tmp_path / "nothing.toml")
    with pytest.raises(ConfigurationError, match=r"--config .* cannot be read: Is a directory"):
        read_config(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match=r"binary.toml is no TOML"):
        read_config(tmp_path / "binary.toml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"metric": "mes"},
            r"metric is 'mes' \(did you mean 'mse'\?\); allowed are mse, mae, accuracy, log_loss, pinb",
        ),
        ({"objective": "sise"}, r"objective is 'sise' \(did you mean 'size'\?\); allowed are latency, size"),
        ({"formats": ("onx",)}, r"formats is 'onx' \(did you mean 'onnx'\?\); allowed are onnx, torchscript, openvino"),
        ({"formats": ()}, r"formats is empty; allowed are onnx, torchscript, openvino"),
        ({"max_degradation": -0.1}, r"max_degradation is -0.1; allowed are fractions from 0 on, for example 0.05 for"),
        ({"max_degradation": float("nan")}, r"max_degradation is nan"),
        ({"max_output_error": float("inf")}, r"max_output_error is inf"),
        ({"atol": -1.0}, r"atol is -1.0; allowed are fractions from 0 on"),
        ({"rtol": float("nan")}, r"rtol is nan"),
        ({"batches": (1, 0)}, r"batch is \[1, 0\]; allowed are whole numbers from 1 on"),
        ({"batches": ()}, r"batch is \[\]; allowed are whole numbers from 1 on"),
        ({"threads": 0}, r"threads is 0; allowed are whole numbers from 1 on"),
        ({"seconds": 0}, r"seconds is 0; allowed are numbers above 0"),
        ({"seconds": float("nan")}, r"seconds is nan"),
        ({"search_seconds": -1}, r"search_seconds is -1; allowed are numbers from 0 on, 0 for no search"),
        ({"search_seconds": float("inf")}, r"search_seconds is inf"),
        ({"seed": -1}, r"seed is -1; allowed are whole numbers from 0 to 4294967295"),
        ({"seed": 2**40}, r"seed is 1099511627776"),
        ({"name": "a/b"}, r"name is 'a/b'; allowed is a folder name without '/' that does not begin with a dot"),
        ({"name": ".hidden"}, r"name is '.hidden'"),
        ({"name": ""}, r"name is ''"),
    ],
)
def test_a_value_that_is_not_allowed(values, message):
    with pytest.raises(ConfigurationError, match=message):
        merge({}, {**NEEDED, **values})


VALUES = {
    "model": st.sampled_from(["linear", "dlinear"]),
    "target": st.sampled_from(["cpu4-fp32", "cpu4-int8"]),
    "output": st.sampled_from([Path("a"), Path("b")]),
    "device": st.sampled_from(["host", "avx2"]),
    "checkpoint": st.sampled_from([Path("a.pth"), Path("b.pth")]),
    "component": st.sampled_from(["h-module", "l-module"]),
    "calibration": st.sampled_from([Path("a.npz"), Path("b.npz")]),
    "calibration_table": st.just(Path("calibration.json")),
    "evaluation": st.sampled_from([Path("a.npz"), Path("b.npz")]),
    "metric": st.sampled_from(METRICS),
    "max_degradation": st.floats(0, 1),
    "max_output_error": st.floats(0, 1),
    "prune": st.floats(0.01, 0.99),
    "max_prune_degradation": st.floats(0, 1),
    "rollout": st.integers(1, 100),
    "objective": st.sampled_from(["latency", "size"]),
    "batches": st.lists(st.integers(1, 64), min_size=1).map(tuple),
    "runtime": st.sampled_from(["tract", "openvino"]),
    "formats": st.lists(st.sampled_from(FORMATS), min_size=1).map(tuple),
    "selection": st.sampled_from([Path("a.json"), Path("b.json")]),
    "table": st.sampled_from([Path("a.toml"), Path("b.toml")]),
    "atol": st.floats(0, 1),
    "rtol": st.floats(0, 1),
    "threads": st.integers(1, 8),
    "seconds": st.floats(0.1, 60),
    "search_seconds": st.floats(0, 600),
    "seed": st.integers(0, 100),
    "name": st.sampled_from(["one", "two"]),
    "force": st.booleans(),
    "include_preprocessing": st.booleans(),
    "inputs": st.sampled_from([(TensorSpec("x", "float32", ("batch", 2)),), (TensorSpec("y", "float32", ("batch",)),)]),
    "series": st.sampled_from([{"stride": 1}, {"stride": 2}]),
}


def test_the_strategies_know_every_option():
    assert set(VALUES) | {"settings"} == {field.name for field in fields(BuildOptions)}


@given(st.fixed_dictionaries({}, optional=VALUES), st.fixed_dictionaries({}, optional=VALUES))
def test_the_command_line_wins_the_file_fills_in_and_defaults_remain(file, line):
    options = merge({**NEEDED, **file}, {**dict.fromkeys(VALUES), **line})  # the command line gives None where unset
    default = BuildOptions(**NEEDED)
    for key in VALUES:
        expected = line.get(key, file.get(key, getattr(default, key)))
        assert getattr(options, key) == expected, key


@given(*(st.dictionaries(st.sampled_from("abcd"), st.integers()) for _ in range(2)))
def test_settings_of_the_command_line_win(file, line):
    options = merge({**NEEDED, "settings": file}, {"settings": line})
    assert options.settings == {**file, **line}
