"""`tsexport targets` and `runtimes`: what there is, what this machine can run, and what is missing."""

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import click

from tsexport.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from tsexport.types import RuntimeStatus

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


@click.command()
@json_option
def targets(as_json: bool) -> None:
    """List the targets, and which of them this machine can run."""
    rows, machine = _target_rows(), _machine()
    if as_json:
        print_json({"machine": machine, "targets": rows})
        return
    print_table(
        ("target", "precision", "cores", "runs here", "summary"),
        [[r["name"], r["precision"], str(r["cores"]), "yes" if r["runs_here"] else "no", r["summary"]] for r in rows],
        title=f"{machine['cpu']}, {machine['instruction_set']}, {machine['cores']} cores",
    )
    for note in dict.fromkeys(row["note"] for row in rows if row["note"]):
        say(note)


@click.command()
@json_option
def runtimes(as_json: bool) -> None:
    """List the runtimes, which of them are installed, and the pip command for the rest."""
    from tsexport.runtimes.registry import list_statuses

    statuses = list_statuses()
    if as_json:
        print_json({"runtimes": [dataclasses.asdict(status) for status in statuses]})
        return
    print_table(
        ("runtime", "available", "version", "formats"),
        [[s.name, "yes" if s.available else "no", s.version or "-", ", ".join(s.formats) or "-"] for s in statuses],
    )
    for status in statuses:
        if not status.available:
            click.echo(f"{status.name}: {status.reason}; install it with: {status.pip_command}")


def _machine() -> dict[str, Any]:
    """Return what the targets are held against, as one JSON object."""
    from tsexport.targets import host_cpu

    cpu = host_cpu()
    return {
        "cpu": cpu.model,
        "instruction_set": cpu.instruction_set,
        "vnni": cpu.vnni,
        "bf16": cpu.bf16,
        "cores": _cores(),
    }


def _target_rows() -> list[dict[str, Any]]:
    """Return one JSON object a target; it runs here where its device is this machine and a runtime is installed."""
    from tsexport.errors import UnsupportedError
    from tsexport.runtimes.registry import list_statuses
    from tsexport.targets import parse_target, target_names

    statuses = list_statuses()
    rows = []
    for name in target_names():
        try:
            target = parse_target(name)
        except UnsupportedError as error:
            device, _, precision = name.rpartition("-")
            rows.append(_target_row(name, device, precision, None, str(error), runs_here=False, note=error.message))
            continue
        note = _missing_runtimes(statuses) or _fewer_cores(target.cores)
        runs_here = any(status.available for status in statuses)
        rows.append(
            _target_row(
                name, target.device, target.precision, target.cores, target.summary, runs_here=runs_here, note=note
            )
        )
    return rows


def _target_row(
    name: str, device: str, precision: str, cores: int | None, summary: str, *, runs_here: bool, note: str
) -> dict[str, Any]:
    return {
        "name": name,
        "device": device,
        "precision": precision,
        "cores": cores,
        "summary": summary,
        "runs_here": runs_here,
        "note": note,
    }


def _missing_runtimes(statuses: "tuple[RuntimeStatus, ...]") -> str:
    if any(status.available for status in statuses):
        return ""
    return "no runtime is installed; run one of: " + ", ".join(status.pip_command for status in statuses)


def _fewer_cores(cores: int) -> str:
    if _cores() >= cores:
        return ""
    return f"this machine has {_cores()} of the {cores} cores: a budget met here is met, one missed is inconclusive"


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
