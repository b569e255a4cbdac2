"""`--set key=value` and configuration files: text to typed values, unknown keys refused.

`size=small` stands for all fields that the model's size of that name sets; fields given beside it go over them, in
whatever order they are written.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from tsexport.errors import ConfigurationError, did_you_mean
from tsexport.models.definition import ModelConfig, sizes_of
from tsexport.types import BATCH, TensorSpec

C = TypeVar("C", bound=ModelConfig)
INPUT_DTYPES = ("float32", "float64", "float16", "int64", "int32", "bool")
SIZE = "size"


def configure(config_type: type[C], settings: Mapping[str, object], *, model: str) -> C:
    """Return `config_type` with `settings` over its defaults; strings are read as the field's type.

    Raises:
        ConfigurationError: an unknown key or size, a value of another type, or values that do not fit together.
    """
    types = get_type_hints(config_type)
    names = [field.name for field in fields(config_type)]
    allowed = [*names, SIZE] if sizes_of(config_type) else names
    values: dict[str, object] = {}
    for key, value in settings.items():
        if key not in allowed:
            raise ConfigurationError(
                f"{model} has no setting {key!r}{did_you_mean(key, allowed)}; it has {', '.join(allowed)}",
                next_step=f"Write for example --set {names[0]}={getattr(config_type, names[0], '...')}.",
            )
        if key in names:
            values[key] = _coerce(key, value, types[key])
    preset = _fields_of_size(config_type, settings[SIZE], model) if SIZE in settings and SIZE not in names else {}
    return config_type(**{**preset, **values})


def _fields_of_size(config_type: type[ModelConfig], size: object, model: str) -> Mapping[str, object]:
    sizes = sizes_of(config_type)
    if size not in sizes:
        raise ConfigurationError(
            f"{model} has no size {size!r}{did_you_mean(str(size), sizes)}; it has {', '.join(sizes)}",
            next_step=f"Write for example --set {SIZE}={next(iter(sizes))}, or set the sizes one by one.",
        )
    return sizes[str(size)]


def parse_settings(pairs: Iterable[str]) -> dict[str, object]:
    """Return the settings that "key=value" each give, values as `parse_scalar` reads them; a later one goes over.

    Raises:
        ConfigurationError: no "=", or nothing before it.
    """
    settings = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise ConfigurationError(
                f"--set {pair!r} has no form key=value", next_step="write for example --set horizon=96"
            )
        settings[key] = parse_scalar(value)
    return settings


def parse_scalar(text: str) -> object:
    """Return a TOML value ("3", "0.5", "true", "[1, 2]") as what it is, any other text as a string."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # also a number of thousands of digits, and lists in lists
        return text
    return document["value"] if len(document) == 1 else text


def parse_input(text: str) -> TensorSpec:
    """Return the input that "name=batch,60,16" or "name=batch,60,16:int64" describes (float32 where no dtype is given).

    Raises:
        ConfigurationError: anything else.
    """
    name, separator, rest = text.partition("=")
    shape_text, _, dtype = rest.partition(":")
    first, *dimensions = [part.strip() for part in shape_text.split(",")]
    good = bool(separator) and bool(name.strip()) and first == BATCH
    if not good or not all(part.isdecimal() and int(part) > 0 for part in dimensions):
        raise ConfigurationError(
            f"{text!r} does not describe an input; the form is name={BATCH},DIM,...[:dtype]",
            next_step="Write for example --input x=batch,60,16.",
        )
    if (dtype := dtype.strip() or "float32") not in INPUT_DTYPES:
        raise ConfigurationError(
            f"{dtype!r} is no dtype for an input{did_you_mean(dtype, INPUT_DTYPES)}; "
            f"allowed are {', '.join(INPUT_DTYPES)}"
        )
    return TensorSpec(name.strip(), dtype, (BATCH, *map(int, dimensions)))


def _coerce(key: str, value: object, wanted: Any) -> object:
    if get_origin(wanted) is tuple:
        return _coerce_numbers(key, value, get_args(wanted)[0])
    if isinstance(value, str) and wanted is not str:
        value = parse_scalar(value)
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:  # not isinstance: True is an int
        kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise ConfigurationError(f"{key} is {value!r}; it must be {kinds.get(wanted, wanted.__name__)}")
    return value


def _coerce_numbers(key: str, value: object, wanted: type) -> tuple[object, ...]:
    """Return "39,19,9", "[39, 19, 9]", a sequence, or a single number as a tuple of `wanted`."""
    given = value
    if isinstance(value, str):
        value = parse_scalar(value if value.strip().startswith("[") else f"[{value}]")
    items = value if isinstance(value, list | tuple) else (value,)
    try:
        return tuple(_coerce(key, item, wanted) for item in items)
    except ConfigurationError as error:
        kind = "whole numbers" if wanted is int else "numbers"
        raise ConfigurationError(
            f"{key} is {given!r}; it must be {kind} with commas between them", next_step=f"Write --set {key}=3,5,8."
        ) from error
