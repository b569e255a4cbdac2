"""`tsexport targets` and `runtimes`: what there is, what this machine can run, and what is missing."""

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import click

from tsexport.cli.output import echo, print_json, print_table, say
from tsexport.devices import broken_devices, list_devices
from tsexport.targets import CPU_DEVICES, Target, gpu_here, host_cpu, refusal_of, resolve_target, target_names

if TYPE_CHECKING:
    from tsexport.types import RuntimeStatus

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


@click.command()
@json_option
def targets(as_json: bool) -> None:
    """List the targets: what each device can do, its TensorRT, and whether latency can be measured here."""
    rows, machine = _target_rows(), _machine()
    if as_json:
        print_json({"machine": machine, "targets": rows, "devices": _device_rows(), "cpu_devices": list(CPU_DEVICES)})
        return
    print_table(
        ("target", "device", "TensorRT", "measured here", "summary"),
        [(row["name"], row["device"], row["tensorrt"] or "-", _measured_here(row), row["summary"]) for row in rows],
        title=f"{machine['cpu']}, {machine['instruction_set']}, {machine['cores']} cores",
    )
    print_table(
        ("--device", "title", "precisions", "JetPack", "TensorRT", "caveats"),
        [
            (
                row["name"],
                row["title"],
                ", ".join(row["precisions"]),
                _span(row["jetpack"]),
                _span(row["tensorrt"]),
                "; ".join(row["caveats"]) or "-",
            )
            for row in _device_rows()
        ],
        title="devices of GPU and Jetson targets; NAME@jetpack-X or NAME@tensorrt-X chooses another release",
    )
    echo(f"cpu4 targets take --device {', '.join(CPU_DEVICES)}")
    for note in dict.fromkeys(row["note"] for row in rows if row["note"]):
        say(note)
    for error in broken_devices().values():
        say(error.message)


def _span(versions: list[str]) -> str:
    return f"{versions[0]} to {versions[-1]}" if versions else "-"


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
            echo(f"{status.name}: {status.reason}; install it with: {status.pip_command}")


def _machine() -> dict[str, Any]:
    """Return what the targets are held against, as one JSON object."""
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
    from tsexport.runtimes.registry import list_statuses

    missing = _missing_runtimes(list_statuses())
    return [_target_row(target, missing) for target in map(resolve_target, target_names())]


def _target_row(target: Target, missing: str) -> dict[str, Any]:
    refusal = refusal_of(target)
    fewer = _fewer_cores(target.cores) if target.here else ""
    return {
        "name": target.name,
        "device": target.device,
        "precision": target.precision,
        "cores": target.cores,
        "instruction_set": target.instruction_set,
        "tensorrt": target.tensorrt,
        "jetpack": target.jetpack,
        "compute_capability": target.compute_capability,
        "formats": list(target.formats),
        "summary": target.summary,
        "runs_here": target.here and not missing and refusal is None,
        "device_here": gpu_here(target),
        "caveats": list(target.caveats),
        "note": refusal.message if refusal else missing or fewer,
    }


def _measured_here(row: dict[str, Any]) -> str:
    if row["runs_here"]:
        return "yes"
    return "its device is here, for PyTorch" if row["device_here"] else "no"


def _device_rows() -> list[dict[str, Any]]:
    """Return one JSON object a GPU or board: its facts, and the releases that `--device` may name."""
    return [
        {
            **dataclasses.asdict(device),
            "tensorrt": list(device.tensorrt_versions()),
            "jetpack": list(device.jetpacks()),
            "precisions": list(device.precisions),
        }
        for device in list_devices()
    ]


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
