"""Plan files: a matrix and single builds over shared options, read strictly."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tsexport.errors import ConfigurationError
from tsexport.options import read_config
from tsexport.plans.files import read_plan
from tsexport.types import TensorSpec

SHARED = '[build]\noutput = "dist"\n'
WORDS = st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12)


@pytest.fixture
def read(tmp_path):
    """Write a plan and read it."""

    def read_text(text, **over):
        path = tmp_path / "plan.toml"
        path.write_text(text)
        return read_plan(path, over)

    return read_text


def test_every_pair_of_the_matrix_and_then_the_single_builds(read):
    builds = read(
        SHARED
        + """
        [matrix]
        models = ["linear", "dlinear"]
        targets = ["cpu4-fp32", "cpu4-int8"]
        [[builds]]
        model = "patchtst-cpu"
        target = "t4-fp16"
        """
    )
    assert [(one.options.model, one.options.target) for one in builds] == [
        ("linear", "cpu4-fp32"),
        ("linear", "cpu4-int8"),
        ("dlinear", "cpu4-fp32"),
        ("dlinear", "cpu4-int8"),
        ("patchtst-cpu", "t4-fp16"),
    ]
    assert [one.where for one in builds][-2:] == ["[matrix] dlinear for cpu4-int8", "[[builds]] 1"]
    assert builds[0].label == "linear for cpu4-fp32"


def test_own_options_over_the_models_over_the_shared_ones(read, tmp_path):
    (tmp_path / "weights.pth").touch()
    builds = read(
        """
        [build]
        output = "dist"
        seconds = 3
        max-degradation = 0.02
        [model]
        horizon = 24
        channels = 3
        [series]
        columns = ["a"]
        [matrix]
        models = [{ model = "dlinear", checkpoint = "weights.pth", seconds = 2, set = { horizon = 12 } }]
        targets = ["cpu4-fp32", { target = "jetson-int8", device = "xavier-nx@jetpack-5.1", seconds = 1, batch = 8 }]
        [[builds]]
        model = "model.onnx"
        target = "cpu4-fp32"
        series = { columns = ["b"] }
        inputs = [{ name = "x", shape = ["batch", 4] }]
        name = "mine"
        """
    )
    first, second, single = (one.options for one in builds)
    assert (first.seconds, first.max_degradation, first.checkpoint) == (2, 0.02, tmp_path / "weights.pth")
    assert first.settings == {"horizon": 12, "channels": 3}
    assert (second.device, second.seconds, second.batches) == ("xavier-nx@jetpack-5.1", 1, (8,))
    assert builds[1].label == "dlinear for jetson-int8 xavier-nx@jetpack-5.1"
    assert (single.series, single.name, single.seconds) == ({"columns": ["b"]}, "mine", 3)
    assert single.inputs == (TensorSpec("x", "float32", ("batch", 4)),)
    assert first.series == {"columns": ["a"]}
    assert first.output == single.output == tmp_path / "dist"


def test_the_command_line_wins(read):
    text = (
        SHARED + 'seconds = 3\n[model]\nhorizon = 4\n[[builds]]\nmodel = "linear"\ntarget = "cpu4-fp32"\nseconds = 2\n'
    )
    (build,) = read(text, seconds=0.5, output=Path("here"), settings={"horizon": 8, "channels": 2})
    assert (build.options.seconds, build.options.output) == (0.5, Path("here"))
    assert build.options.settings == {"horizon": 8, "channels": 2}


def test_files_are_relative_to_the_plan(read, tmp_path):
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "net.onnx").touch()
    text = """
        [build]
        output = "dist"
        [matrix]
        models = ["mine.py:make", "net.onnx", { model = "linear", calibration = "data/a.npz" }]
        targets = ["cpu4-fp32"]
    """
    factory, file, data = (one.options for one in read(text))
    assert factory.model == f"{tmp_path / 'mine.py'}:make"
    assert file.model == str(tmp_path / "net.onnx")
    assert data.calibration == tmp_path / "data" / "a.npz"


MATRIX = '[matrix]\nmodels = ["linear"]\ntargets = ["cpu4-fp32"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "plan.toml names no build; it needs [matrix] or [[builds]], for example [matrix] with models ="),
        ("x = ", "--plan PATH is no TOML: "),
        (
            "[biuld]\n",
            "plan.toml has the unknown key 'biuld' (did you mean 'build'?); allowed are build, model, inputs",
        ),
        (SHARED + "second = 3\n", "table [build], has the unknown key 'second' (did you mean 'seconds'?); allowed are"),
        ("matrix = 3\n", "plan.toml: matrix must be a table, for example [matrix] with models"),
        ("[matrix]\nmodel = 3\n", "table [matrix], has the unknown key 'model' (did you mean 'models'?); allowed are"),
        ('[matrix]\nmodels = ["linear"]\n', "table [matrix]: targets must be a list that is not empty, for example"),
        ('[matrix]\nmodels = "linear"\n', "table [matrix]: models must be a list that is not empty, for example"),
        ("[matrix]\nmodels = [3]\n", "[matrix], item 1 of models: 3 is neither a name nor a table of options"),
        ("[matrix]\nmodels = [{ seconds = 3 }]\n", "[matrix], item 1 of models, has no model"),
        (
            '[matrix]\nmodels = [{ model = "linear", target = "cpu4-fp32" }]\n',
            "[matrix], item 1 of models, names a target, which is the matrix's other side",
        ),
        (
            '[matrix]\nmodels = ["linear"]\ntargets = [{ target = "cpu4-fp32", model = "x" }]\n',
            "[matrix], item 1 of targets, names a model, which is the matrix's other side",
        ),
        (
            '[matrix]\nmodels = [{ model = "linear", chekpoint = "a" }]\n',
            "[matrix], item 1 of models, has the unknown key 'chekpoint' (did you mean 'checkpoint'?); allowed are mod",
        ),
        ("builds = 3\n", "plan.toml: builds must be tables, [[builds]]"),
        ("builds = [3]\n", "plan.toml, [[builds]] 1: 3 is neither a name nor a table of options"),
        ("[[builds]]\nsett = 3\n", "[[builds]] 1, has the unknown key 'sett' (did you mean 'set'?); allowed are"),
        ("[[builds]]\nset = 3\n", "[[builds]] 1: set must be a table, for example set = {...}"),
        ("[[builds]]\nseries = 3\n", "[[builds]] 1: series must be a table, for example series = {...}"),
        ("[[builds]]\ninputs = 3\n", "[[builds]] 1: inputs must be tables, for example [[inputs]] with name"),
        ('[[builds]]\nmodel = "linear"\nthreads = "2"\n', "[[builds]] 1, key threads: '2' is no int"),
        ('[[builds]]\ntarget = "cpu4-fp32"\n', "[[builds]] 1, has no model: give it there, in [build]"),
        ('[[builds]]\nmodel = "linear"\n', "[[builds]] 1, has no target: give it there, in [build]"),
        (MATRIX, "[matrix] linear for cpu4-fp32, has no output: give it there, in [build] or with -o"),
        (
            SHARED + "seconds = -1\n" + MATRIX,
            "[matrix] linear for cpu4-fp32: seconds is -1; allowed are numbers above 0",
        ),
        (
            SHARED + "[model]\nday = 2026-01-01\n" + MATRIX,
            "[matrix] linear for cpu4-fp32: record.settings.day is a date, which a record cannot hold",
        ),
    ],
)
def test_what_is_refused(read, tmp_path, text, message):
    with pytest.raises(ConfigurationError) as caught:
        read(text)
    assert message.replace("PATH", str(tmp_path / "plan.toml")) in caught.value.message


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigurationError, match=r"--plan .*plan\.toml cannot be read: No such file"):
        read_plan(tmp_path / "plan.toml", {})


VALUES = {
    "seconds": st.floats(0.1, 100),
    "seed": st.integers(0, 1000),
    "metric": st.sampled_from(["mse", "mae"]),
    "include-preprocessing": st.booleans(),
}
OPTIONS = st.fixed_dictionaries({}, optional=VALUES)


def toml_of(options):
    spelled = {
        key: str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
        for key, value in options.items()
    }
    return "".join(f"{key} = {value}\n" for key, value in spelled.items())


@given(OPTIONS, OPTIONS, OPTIONS)
@example({"seconds": 1.0}, {"seconds": 2.0}, {"seconds": 3.0})
def test_each_option_is_that_of_the_closest_place(shared, single, over):
    """As a --config file of all three on top of each other gives it."""
    together = {**shared, **single, **over}
    names = {key.replace("-", "_"): value for key, value in over.items()}
    with tempfile.TemporaryDirectory() as folder:
        plan, config = Path(folder) / "plan.toml", Path(folder) / "build.toml"
        head = 'model = "linear"\ntarget = "cpu4-fp32"\n'
        plan.write_text(f"{SHARED}{toml_of(shared)}[[builds]]\n{head}{toml_of(single)}")
        config.write_text(f"{SHARED}{head}{toml_of(together)}")
        (build,) = read_plan(plan, names)
        wanted = read_config(config)
    assert {key: getattr(build.options, key) for key in wanted if key != "series"} == {
        key: value for key, value in wanted.items() if key != "series"
    }


@given(st.lists(WORDS, min_size=1, max_size=5), st.lists(WORDS, min_size=1, max_size=5))
def test_a_matrix_has_every_pair_once_for_each_time_it_is_written(models, targets):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.toml"
        path.write_text(f"{SHARED}[matrix]\nmodels = {models}\ntargets = {targets}\n")
        builds = read_plan(path, {})
    assert [(one.options.model, one.options.target) for one in builds] == [
        (model, target) for model in models for target in targets
    ]


@given(st.text(max_size=200))
def test_any_text_is_an_error_that_names_the_file(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.toml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigurationError, match="plan\\.toml"):
            read_plan(path, {})  # without a model, a target and an output no text is a whole plan
