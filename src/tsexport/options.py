"""What a build is asked to do: one frozen record, validated once, from the command line over a TOML file.

The file has the tables `[build]` (options by their long names, `-` or `_`), `[model]` (as `--set`), `[[inputs]]`
(name, dtype, shape) and `[series]` (columns and windows of csv and parquet data).  Unknown tables and keys are
errors.  Files named in it are relative to its folder.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from tsexport.errors import ConfigurationError, did_you_mean
from tsexport.models.settings import INPUT_DTYPES
from tsexport.types import BATCH, FORMATS, Format, TensorSpec

TABLES = ("build", "model", "inputs", "series")
METRICS = ("mse", "mae", "accuracy", "log_loss", "pinball")
DEFAULT_BATCHES = (1, 10, 32)
DEFAULT_SECONDS = 4.0
DEFAULT_SEARCH_SECONDS = 300.0
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class BuildOptions:
    """All that decides a build.

    Attributes:
        model: a registered name, `module:factory`, or an .onnx, TorchScript or .pt2 file.
        target, device: what the bundle is for.
        output: the folder that gets the bundle's folder.
        checkpoint: weights; None for the reference checkpoint or a seeded initialisation.
        settings: the model's configuration, by key.
        component: the part of a registered model that is built; None for all of it.
        inputs: inputs of a model that does not say them itself.
        calibration, evaluation: files of data; None for the reference series or none.
        calibration_table: a calibration.json whose ranges are used in place of calibrating.
        series: the `[series]` table, as given.
        metric, max_degradation, max_output_error: the accuracy budget; fractions.
        prune: the fraction of channels, heads and feed-forward units that is removed; None for none.
        max_prune_degradation: what pruning may cost, a fraction; None where it is only reported.
        rollout: steps over which a model is fed with its own output; None for no such check.
        include_preprocessing: scaling, gaps, calendar and scaling back become part of the graph.
        objective: what selection looks for.
        batches: batch sizes that are measured.
        runtime: limits selection to one runtime.
        formats: what is exported.
        selection: a selection.json to repeat.
        table: a latency table whose rows are judged in place of the published ones.
        atol, rtol: parity tolerance of the fp32 artifacts, in place of the default one.
        threads: threads used for measuring, at most the target's cores; None for as many as there are.
        seconds: at most, for each artifact, runtime and batch size that is measured.
        search_seconds: at most, for finding the layers that stay in floating point; 0 leaves none.
        seed: of weights, feeds and drawn windows.
        name: the bundle's name in place of the derived one.
        force: an existing bundle of that name is replaced.
    """

    model: str
    target: str
    output: Path
    device: str = "host"
    checkpoint: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    component: str | None = None
    inputs: tuple[TensorSpec, ...] = ()
    calibration: Path | None = None
    calibration_table: Path | None = None
    evaluation: Path | None = None
    series: Mapping[str, Any] | None = None
    metric: str | None = None
    max_degradation: float = 0.05
    max_output_error: float = 0.05
    prune: float | None = None
    max_prune_degradation: float | None = None
    rollout: int | None = None
    include_preprocessing: bool = False
    objective: Literal["latency", "size"] = "latency"
    batches: tuple[int, ...] = DEFAULT_BATCHES
    runtime: str | None = None
    formats: tuple[Format, ...] = FORMATS
    selection: Path | None = None
    table: Path | None = None
    atol: float | None = None
    rtol: float | None = None
    threads: int | None = None
    seconds: float = DEFAULT_SECONDS
    search_seconds: float = DEFAULT_SEARCH_SECONDS
    seed: int = 0
    name: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        _one_of("metric", self.metric, (*METRICS, None))
        _one_of("objective", self.objective, ("latency", "size"))
        for one in self.formats:
            _one_of("formats", one, FORMATS)
        if not self.formats:
            raise ConfigurationError(f"formats is empty; allowed are {', '.join(FORMATS)}")
        if self.prune is not None and not 0 < self.prune < 1:
            raise ConfigurationError(f"prune is {self.prune}; allowed are fractions between 0 and 1, for example 0.3")
        if self.rollout is not None and self.rollout < 1:
            raise ConfigurationError(f"rollout is {self.rollout}; allowed are whole numbers of steps from 1 on")
        for key in ("max_degradation", "max_output_error", "max_prune_degradation", "atol", "rtol"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigurationError(f"{key} is {value}; allowed are fractions from 0 on, for example 0.05 for 5 %")
        if not self.batches or min(self.batches) < 1:
            raise ConfigurationError(f"batch is {list(self.batches)}; allowed are whole numbers from 1 on")
        if self.threads is not None and self.threads < 1:
            raise ConfigurationError(f"threads is {self.threads}; allowed are whole numbers from 1 on")
        if not 0 < self.seconds < float("inf"):
            raise ConfigurationError(f"seconds is {self.seconds}; allowed are numbers above 0")
        if not 0 <= self.search_seconds < float("inf"):
            raise ConfigurationError(
                f"search_seconds is {self.search_seconds}; allowed are numbers from 0 on, 0 for no search"
            )
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigurationError(f"seed is {self.seed}; allowed are whole numbers from 0 to {MAX_SEED}")
        if self.name is not None and (not self.name or "/" in self.name or self.name.startswith(".")):
            raise ConfigurationError(
                f"name is {self.name!r}; allowed is a folder name without '/' that does not begin with a dot"
            )


SETTABLE = tuple(f.name for f in fields(BuildOptions) if f.name not in ("settings", "inputs", "series"))
PATHS = ("output", "checkpoint", "calibration", "calibration_table", "evaluation", "selection", "table")


def _one_of(key: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        words = [str(word) for word in allowed if word is not None]
        raise ConfigurationError(f"{key} is {value!r}{did_you_mean(str(value), words)}; allowed are {', '.join(words)}")


def check_keys(what: str, given: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    """Raise ConfigurationError for a key that is not allowed; `what` begins the message."""
    for key in given:
        if key not in allowed:
            raise ConfigurationError(
                f"{what} has the unknown key {key!r}{did_you_mean(key, allowed)}; allowed are {', '.join(allowed)}"
            )


def read_config(path: Path) -> dict[str, Any]:
    """Return a TOML file as keyword arguments of `BuildOptions`.

    Raises:
        ConfigurationError: it cannot be read, is no TOML, or has unknown tables, keys or values of a wrong type.
    """
    document = read_toml(path, "--config")
    check_keys(f"{path.name}", document, TABLES)
    return values_of_tables(path, document)


def read_toml(path: Path, option: str) -> dict[str, Any]:
    """Return what a TOML file holds; `option` is how it was given.

    Raises:
        ConfigurationError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{option} {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and lists in lists
        raise ConfigurationError(f"{option} {path} is no TOML: {error}") from error


def values_of_tables(path: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of a file, without others than `TABLES`, as keyword arguments of `BuildOptions`.

    Raises:
        ConfigurationError: unknown keys, or values of a wrong type.
    """
    for table in ("build", "model", "series"):
        if not isinstance(document.get(table, {}), dict):
            raise ConfigurationError(f"{path.name}: {table} must be a table, [{table}]")
    given = values_of_options(path.parent, f"{path.name}, table [build],", path.name, document.get("build", {}))
    given |= {"settings": document.get("model", {}), "series": document.get("series")}
    if "inputs" in document:
        given["inputs"] = inputs_of_tables(path.name, document["inputs"])
    return given


def values_of_options(folder: Path, table: str, where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by their long names as keyword arguments of `BuildOptions`.

    Args:
        folder: what files are relative to.
        table: how a message about an unknown key begins.
        where: how one about a value begins.
        options: as in the table `[build]`.

    Raises:
        ConfigurationError: unknown keys, or values of a wrong type.
    """
    build = {key.replace("-", "_"): value for key, value in options.items()}
    if "batch" in build:
        build["batches"] = build.pop("batch")
    check_keys(table, build, SETTABLE)
    for key in PATHS:
        if key in build:
            build[key] = folder / _text(f"{where}, key {key}", build[key])
    if isinstance(build.get("model"), str):
        build["model"] = _model(folder, build["model"])
    for key in ("batches", "formats"):
        if key in build:
            build[key] = _sequence(f"{where}, key {key}", build[key])
    _check_types(where, build)
    return build


def inputs_of_tables(where: str, tables: object) -> tuple[TensorSpec, ...]:
    """Return the inputs that `[[inputs]]` describes.

    Raises:
        ConfigurationError: no tables, or they describe none.
    """
    return tuple(_input(where, table) for table in (tables if isinstance(tables, list) else [None]))


def _model(folder: Path, model: str) -> str:
    """Return MODEL with the folder before it where it is a file, or a factory in one."""
    file, colon, factory = model.partition(":")
    return f"{folder / file}{colon}{factory}" if (folder / file).is_file() else model


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{what}: {value!r} is no str")
    return value


def _sequence(what: str, value: object) -> tuple[Any, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, int):
        return (value,)
    raise ConfigurationError(f"{what} must be a list, got {value!r}")


def _input(where: str, table: object) -> TensorSpec:
    form = 'for example [[inputs]] with name = "x", dtype = "float32", shape = ["batch", 60, 16]'
    if not isinstance(table, dict):
        raise ConfigurationError(f"{where}: inputs must be tables, {form}")
    check_keys(f"{where}, table [[inputs]],", table, ("name", "dtype", "shape"))
    name, dtype, shape = table.get("name"), table.get("dtype", "float32"), table.get("shape")
    if not isinstance(name, str) or not name or not isinstance(shape, list):
        raise ConfigurationError(f"{where}: an input needs a name and a shape, {form}")
    if shape[:1] != [BATCH] or not all(type(size) is int and size > 0 for size in shape[1:]):
        raise ConfigurationError(f"{where}: the input {name!r} has shape {shape}; it begins with {BATCH!r}, {form}")
    if dtype not in INPUT_DTYPES:
        raise ConfigurationError(
            f"{where}: the input {name!r} has dtype {dtype!r}{did_you_mean(str(dtype), INPUT_DTYPES)}; "
            f"allowed are {', '.join(INPUT_DTYPES)}"
        )
    return TensorSpec(name, dtype, tuple(shape))


_KINDS: Mapping[str, tuple[type, ...]] = {
    "max_degradation": (int, float),
    "max_output_error": (int, float),
    "prune": (int, float),
    "max_prune_degradation": (int, float),
    "rollout": (int,),
    "atol": (int, float),
    "rtol": (int, float),
    "seconds": (int, float),
    "search_seconds": (int, float),
    "threads": (int,),
    "seed": (int,),
    "force": (bool,),
    "include_preprocessing": (bool,),
    **dict.fromkeys(("model", "target", "device", "component", "metric", "objective", "runtime", "name"), (str,)),
}


def _check_types(where: str, given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        kinds = _KINDS.get(key)
        if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise ConfigurationError(f"{where}, key {key}: {value!r} is no {kinds[-1].__name__}")
    for batch in given.get("batches", ()):
        if not isinstance(batch, int) or isinstance(batch, bool):
            raise ConfigurationError(f"{where}, key batch: {batch!r} is no int")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> BuildOptions:
    """Return options from a file's values and those of the command line, which win; settings are merged key by key.

    Raises:
        ConfigurationError: model, target or output are given in neither, or a value is not allowed.
    """
    chosen = {**base, **{key: value for key, value in over.items() if value is not None and key != "settings"}}
    chosen["settings"] = {**base.get("settings", {}), **over.get("settings", {})}
    for key, how in (("model", "MODEL"), ("target", "--target"), ("output", "-o")):
        if chosen.get(key) is None:
            raise ConfigurationError(f"{how} is missing: give it on the command line or as {key} in the --config file")
    return BuildOptions(**chosen)
