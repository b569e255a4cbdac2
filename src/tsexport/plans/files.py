"""Plan files: many builds in one TOML file, read as strictly as `--config` is.

    [build], [model], [[inputs]], [series]     as in a --config file: what all builds share
    [matrix]                                   models = [...] and targets = [...]: one build for each pair
    [[builds]]                                 single builds

An item of `models` or `targets` is a name, or a table of options by the names of `[build]`; so is one of `[[builds]]`.
Such a table may also hold `set` (as `[model]`, key by key over it), `inputs` and `series` (in place of the shared one).
Of a pair, the target's options win over the model's, and both over the shared ones.  Files are relative to the plan's
folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsexport.codec import to_plain
from tsexport.errors import ConfigurationError
from tsexport.options import (
    SETTABLE,
    TABLES,
    check_keys,
    inputs_of_tables,
    merge,
    read_toml,
    values_of_options,
    values_of_tables,
)
from tsexport.plans.records import PlannedBuild

MATRIX, BUILDS = "matrix", "builds"
PLAN_TABLES = (*TABLES, MATRIX, BUILDS)
EXAMPLE = 'for example [matrix] with models = ["patchtst-cpu", "dlinear"] and targets = ["cpu4-int8", "cpu4-fp32"]'
_OWN_KEYS = ("set", "inputs", "series")


def read_plan(path: Path, over: Mapping[str, Any]) -> tuple[PlannedBuild, ...]:
    """Return the builds of a plan file: the matrix, model by model, then the single ones.

    Args:
        path: a TOML file.
        over: options of the command line as keyword arguments of `BuildOptions`, which win; settings key by key.

    Raises:
        ConfigurationError: it cannot be read, is no TOML, names no build, has unknown tables, keys or values of a wrong
            type, or a build lacks its model, target or output.
    """
    document = read_toml(path, "--plan")
    check_keys(path.name, document, PLAN_TABLES)
    shared = values_of_tables(path, {key: document[key] for key in TABLES if key in document})
    asked = [*_matrix(path, document.get(MATRIX)), *_singles(path, document.get(BUILDS, []))]
    if not asked:
        raise ConfigurationError(f"{path.name} names no build; it needs [matrix] or [[builds]], {EXAMPLE}")
    return tuple(_build(path, shared, one, where, over) for where, one in asked)


def _build(
    path: Path, shared: Mapping[str, Any], own: Mapping[str, Any], where: str, over: Mapping[str, Any]
) -> PlannedBuild:
    """Return one build: the command line over its own options over the shared ones."""
    given = _over(shared, own)
    for key in ("model", "target", "output"):
        if given.get(key) is None and over.get(key) is None:
            how = " or with -o" if key == "output" else ""
            raise ConfigurationError(f"{path.name}, {where}, has no {key}: give it there, in [build]{how}")
    try:
        options = merge(given, over)
        to_plain(options)  # what another process cannot be told, such as a date or infinity
    except (ConfigurationError, ValueError) as error:
        message = error.message if isinstance(error, ConfigurationError) else str(error)
        raise ConfigurationError(f"{path.name}, {where}: {message}") from None
    return PlannedBuild(options, where)


def _over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    return {**base, **own, "settings": {**base.get("settings", {}), **own.get("settings", {})}}


def _matrix(path: Path, table: object) -> list[tuple[str, dict[str, Any]]]:
    if table is None:
        return []
    if not isinstance(table, dict):
        raise ConfigurationError(f"{path.name}: matrix must be a table, {EXAMPLE}")
    check_keys(f"{path.name}, table [matrix],", table, ("models", "targets"))
    sides = [_items(path, table, name) for name in ("models", "targets")]
    return [
        (f"[matrix] {model['model']} for {target['target']}", _over(model, target))
        for model in sides[0]
        for target in sides[1]
    ]


def _items(path: Path, table: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the models or targets of the matrix as options, each with its own `model` or `target`."""
    key, items = name.removesuffix("s"), table.get(name)
    if not isinstance(items, list) or not items:
        raise ConfigurationError(f"{path.name}, table [matrix]: {name} must be a list that is not empty, {EXAMPLE}")
    found = []
    for number, item in enumerate(items, start=1):
        where = f"[matrix], item {number} of {name}"
        given = _own(path, where, {key: item} if isinstance(item, str) else item)
        other = "target" if key == "model" else "model"
        if key not in given or other in given:
            problem = f"has no {key}" if key not in given else f"names a {other}, which is the matrix's other side"
            raise ConfigurationError(f"{path.name}, {where}, {problem}")
        found.append(given)
    return found


def _singles(path: Path, tables: object) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(tables, list):
        raise ConfigurationError(f"{path.name}: builds must be tables, [[builds]]")
    places = [f"[[builds]] {number}" for number in range(1, len(tables) + 1)]
    return [(where, _own(path, where, table)) for where, table in zip(places, tables, strict=True)]


def _own(path: Path, where: str, table: object) -> dict[str, Any]:
    """Return the options of a table of one build, or of one side of the matrix."""
    if not isinstance(table, dict):
        raise ConfigurationError(f"{path.name}, {where}: {table!r} is neither a name nor a table of options")
    named = {key.replace("-", "_"): value for key, value in table.items()}
    check_keys(f"{path.name}, {where},", named, (*SETTABLE, "batch", *_OWN_KEYS))
    for key in ("set", "series"):
        if not isinstance(named.get(key, {}), dict):
            raise ConfigurationError(f"{path.name}, {where}: {key} must be a table, for example {key} = {{...}}")
    given = values_of_options(
        path.parent,
        f"{path.name}, {where},",
        f"{path.name}, {where}",
        {key: value for key, value in named.items() if key not in _OWN_KEYS},
    )
    given["settings"] = named.get("set", {})
    if "series" in named:
        given["series"] = named["series"]
    if "inputs" in named:
        given["inputs"] = inputs_of_tables(f"{path.name}, {where}", named["inputs"])
    return given
