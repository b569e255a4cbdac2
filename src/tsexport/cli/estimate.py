"""`tsexport estimate`: memory of a model on a target, and the largest batch that fits, before it is built."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tsexport.cli.output import echo, print_json, print_table, say

if TYPE_CHECKING:
    from tsexport.estimating import LargestBatch, MemoryEstimate, RuntimeMemory

_FILE = click.Path(path_type=Path)
MB = 1_000_000


@click.command("estimate", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.option("--target", required=True, help="What the model is for, for example cpu4-fp32; see `tsexport targets`.")
@click.option("--batch", type=int, default=1, show_default=True, help="The batch size.")
@click.option("--device", help="The target's device: avx2, xavier-nx@jetpack-5.1, @tensorrt-8.6, ...")
@click.option("--checkpoint", type=_FILE, help="Trained weights: .pth, .pt or .safetensors.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A field of the model's configuration.")
@click.option("--component", help="This part of the model alone, for example h-module of hrm-27m.")
@click.option("--config", type=_FILE, help="A TOML file of build's options; the command line overrides it.")
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=batch,60,16", help="An input, where the model says none."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
def estimate(
    model: str,
    target: str,
    batch: int,
    device: str | None,
    checkpoint: Path | None,
    settings: tuple[str, ...],
    component: str | None,
    config: Path | None,
    inputs: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say how much memory MODEL takes at a batch size, and the largest batch that fits; nothing is built.

    MODEL is what `tsexport build` takes: a registered name, module:factory, or an .onnx, TorchScript or .pt2 file.

    \b
    Exit codes: 0 done, 2 bad input, 5 not supported by the target.
    """
    from tsexport.api import estimate as run
    from tsexport.models.settings import parse_input, parse_settings

    found = run(
        model,
        target,
        batch=batch,
        device=device,
        checkpoint=checkpoint,
        set=parse_settings(settings),
        component=component,
        config=config,
        inputs=tuple(parse_input(text) for text in inputs),
    )
    if as_json:
        from tsexport.codec import to_plain

        print_json(to_plain(found))
    else:
        _print(found)


def _print(found: "MemoryEstimate") -> None:
    print_table(
        ("runtime", "runtime's own", "weights", "activations", "workspace", "above idle", "process", "largest batch"),
        [
            (
                one.runtime,
                _mb(one.parts.runtime_bytes),
                _mb(one.parts.weights_bytes),
                _mb(one.parts.activations_bytes),
                _mb(one.parts.workspace_bytes),
                _above(one),
                _mb(one.process_bytes),
                "\n".join(_largest(each) for each in one.largest),
            )
            for one in found.runtimes
        ],
        title=f"{found.model} for {found.target} ({found.device}), batch {found.batch}: estimated memory",
    )
    for figure in found.published:
        misses = ", ".join(f"{factor:g} times ours on {name}" for name, factor in figure.misses_by.items())
        echo(f"published for this size ({figure.config}): {figure.claimed_mb:,.0f} MB, off by {misses}")
    for note in found.notes:
        say(f"note: {note}")


def _above(one: "RuntimeMemory") -> str:
    if one.range_bytes is None:
        return _mb(one.total_bytes)
    least, most = one.range_bytes
    return f"{_mb(one.total_bytes)}\n({least / MB:,.0f} to {most / MB:,.0f})"


def _mb(size: int) -> str:
    return f"{size / MB:,.1f} MB"


def _largest(one: "LargestBatch") -> str:
    fits = "more than 16,777,216" if one.batch is None else f"{one.batch:,}" if one.batch else "none"
    return f"{fits} in {one.limit.name}"
