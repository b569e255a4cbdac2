"""`tsexport models`: what build knows by name, and what each model takes, gives, weighs and is held to."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from tsexport.cli.lists import json_option
from tsexport.cli.output import echo, print_json, print_table, say

if TYPE_CHECKING:
    from tsexport.bench.tables import LatencyRow, LatencyTables, MemoryRow
    from tsexport.models.definition import Component, Sizes
    from tsexport.models.registry import ModelEntry
    from tsexport.types import Budget, TensorSpec


@dataclass(frozen=True)
class _Model:
    """A registered model in its default sizes, and the published rows that it is held to, its components' among
    them."""

    entry: "ModelEntry"
    inputs: "tuple[TensorSpec, ...]"
    outputs: "tuple[TensorSpec, ...]"
    sizes: "Sizes"
    components: "tuple[Component, ...]"
    budgets: "tuple[Budget, ...]"


@click.command()
@click.argument("name", required=False)
@json_option
def models(name: str | None, as_json: bool) -> None:
    """List the models that build knows by name; with NAME, all about one of them.

    Parameters and shapes are those of the default sizes.  For `build`, MODEL may also be module:factory, or an .onnx,
    TorchScript or .pt2 file.
    """
    from tsexport.bench.tables import load_tables
    from tsexport.models.registry import get_entry, list_entries

    entries = list_entries() if name is None else (get_entry(name),)
    tables = load_tables()
    found = [_describe(entry, tables) for entry in entries]
    if as_json:
        print_json({"models": [_document(one) for one in found]})
    elif name is None:
        _print_list(found)
        say("published: latency budgets at batch 1; all of them, and all about a model: `tsexport models MODEL`")
        say("in brackets: the published number of parameters, where ours is another")
        say("build one: `tsexport build MODEL --target cpu4-int8 -o dist`; MODEL may also be module:factory or a file")
    else:
        _print_one(found[0])


def _describe(entry: "ModelEntry", tables: "LatencyTables") -> _Model:
    from tsexport.bench.tables import latency_budgets
    from tsexport.models.definition import components_of, sizes_of

    definition = entry.definition()
    config_type = definition.Config
    config = config_type()
    rows: tuple[LatencyRow | MemoryRow, ...] = (*tables.latency, *tables.memory)
    judged = dict.fromkeys(row.component for row in rows if row.model == entry.name)
    parts = [None, *(one for one in judged if one not in (None, "total"))]
    budgets = [latency_budgets(entry.name, entry.family, part, tables=tables) for part in parts]
    return _Model(
        entry=entry,
        inputs=config.inputs,
        outputs=config.outputs,
        sizes=sizes_of(config_type),
        components=components_of(definition),
        budgets=tuple(budget for rows in budgets for budget in rows),
    )


def _document(one: _Model) -> dict[str, Any]:
    """Return one model as a JSON object."""
    entry = one.entry
    return {
        "name": entry.name,
        "family": entry.family,
        "task": entry.task,
        "summary": entry.summary,
        "source": entry.source,
        "parameters": entry.parameters,
        "published_parameters": entry.published_parameters,
        "published_note": entry.published_note,
        "inputs": [dataclasses.asdict(spec) for spec in one.inputs],
        "outputs": [dataclasses.asdict(spec) for spec in one.outputs],
        "sizes": list(one.sizes),
        "components": [{"name": part.name, "summary": part.summary} for part in one.components],
        "checkpoint": entry.checkpoint is not None,
        "checkpoint_size": entry.checkpoint_size,
        "caveats": list(entry.caveats),
        "budgets": [dataclasses.asdict(budget) for budget in one.budgets],
    }


def _print_list(found: Sequence[_Model]) -> None:
    rows = [
        (
            one.entry.name,
            one.entry.family,
            _short_parameters(one.entry),
            _tensors(one.inputs),
            _tensors(one.outputs),
            "\n".join(_headline(budget) for budget in one.budgets if _is_headline(budget)) or "-",
        )
        for one in found
    ]
    print_table(("model", "family", "parameters", "a sample in", "a sample out", "published"), rows)


def _weights(entry: "ModelEntry") -> str:
    if entry.checkpoint is None:
        return "initialised from --seed"
    return "a reference checkpoint comes with it" + (
        f" for --set size={entry.checkpoint_size}" if entry.checkpoint_size else ""
    )


def _settings(fields: Mapping[str, object]) -> str:
    """Return what a named size sets, as --set takes it."""
    texts = {key: ",".join(map(str, value)) if isinstance(value, tuple) else value for key, value in fields.items()}
    return " ".join(f"{key}={text}" for key, text in texts.items())


def _print_one(one: _Model) -> None:
    entry = one.entry
    lines = [
        (entry.name, entry.summary),
        ("family", entry.family),
        ("task", entry.task),
        ("source", entry.source),
        (
            "parameters",
            _parameters(entry) + (f": {entry.published_note}" * bool(entry.published_note)),
        ),
        *(("size", f"{name}: {_settings(fields)}") for name, fields in one.sizes.items()),
        ("weights", _weights(entry)),
        *(("input", str(spec)) for spec in one.inputs),
        *(("output", str(spec)) for spec in one.outputs),
        *(("component", f"{part.name}: {part.summary}") for part in one.components),
        *(("caveat", caveat) for caveat in entry.caveats),
    ]
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        echo(f"{label.ljust(width)}  {text}")
    if not one.budgets:
        say("no published budget names this model or its family")
        return
    from tsexport.bench.rows import budget_text

    columns = ("published for", "budget", "expected", "on", "remarks")
    print_table(columns, [_budget_cells(budget, budget_text(budget)) for budget in one.budgets])


def _budget_cells(budget: "Budget", asked: str) -> tuple[str, ...]:
    expected = "" if budget.range_ms is None else f"{budget.range_ms[0]:g}-{budget.range_ms[1]:g} ms"
    places = (budget.device, budget.precision, "" if budget.batch is None else f"batch {budget.batch}", budget.via)
    remarks = (budget.note, budget.caveat, budget.source)
    return (
        f"{budget.model} {budget.component or ''}".rstrip(),
        asked,
        expected or "-",
        " ".join(place for place in places if place),
        "; ".join(remark for remark in remarks if remark),
    )


def _parameters(entry: "ModelEntry") -> str:
    own = f"{entry.parameters:,}"
    return own if entry.published_parameters is None else f"{own}, published {entry.published_parameters:,}"


def _short_parameters(entry: "ModelEntry") -> str:
    """Return the count, and below it the published one where that is another: the list has to fit a terminal."""
    own, published = f"{entry.parameters:,}", entry.published_parameters
    return own if published is None else f"{own}\n({published / 1e6:.3g} M)"


def _tensors(specs: "Sequence[TensorSpec]") -> str:
    """Return a line for each tensor, "features 60x26": without the batch where that leads, and without float32."""
    return "\n".join(_tensor(spec) for spec in specs)


def _tensor(spec: "TensorSpec") -> str:
    if any(isinstance(dim, str) for dim in spec.shape[1:]):
        return str(spec)
    sizes = [dim for dim in spec.shape if isinstance(dim, int)]
    dtype = "" if spec.dtype == "float32" else f" {spec.dtype}"
    return f"{spec.name} {'x'.join(map(str, sizes)) or 'one'}{dtype}"


def _is_headline(budget: "Budget") -> bool:
    whole = budget.component in (None, "total")
    return whole and budget.kind == "latency" and budget.batch == 1 and budget.via is None and not budget.formula


def _headline(budget: "Budget") -> str:
    limit = f"{budget.max_ms:g} ms" if budget.max_ms is not None else f">= {budget.min_ms:g} ms"
    return f"{budget.device}: {limit}"
