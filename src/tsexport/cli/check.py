"""`tsexport check`: node by node, will the device accept an ONNX file; without the device."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tsexport.cli.output import echo, print_json, print_table

if TYPE_CHECKING:
    from tsexport.exporters.device_check import DeviceReport


@click.command("check", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="A target with TensorRT, such as jetson-int8.")
@click.option("--device", help="The target's device: NAME[@jetpack-V], @jetpack-V or @tensorrt-V.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
def check(model: Path, target: str, device: str | None, as_json: bool) -> None:
    """Say whether the target's TensorRT takes MODEL, an ONNX file, and computes what it says.

    The file is judged as it stands, node by node, without the device and without TensorRT.

    \b
    Exit codes: 0 accepted, with or without warnings, 2 no ONNX file or a damaged one,
    5 a node is refused or computed wrongly.
    """
    from tsexport.checking import check_file, raise_unless_accepted
    from tsexport.codec import to_plain

    report = check_file(model, target, device)
    if as_json:
        print_json({"accepted": report.accepted, **to_plain(report)})
    else:
        _print(report)
    raise_unless_accepted(report)


def _print(report: "DeviceReport") -> None:
    errors, warnings = len(report.errors), len(report.findings) - len(report.errors)
    counted = f"{report.nodes} nodes, {errors} refused or computed wrongly, {warnings} warnings"
    if report.findings:
        print_table(
            ("", "node", "operator", "reason", "taken from", "what helps"),
            [
                (
                    one.level,
                    one.node or "the file",
                    one.operator,
                    one.reason,
                    one.first_version or "-",
                    one.rewrite or "-",
                )
                for one in report.findings
            ],
            title=f"{report.file} on {report.device}, TensorRT {report.tensorrt}",
        )
    echo(f"{report.file} on {report.device}, TensorRT {report.tensorrt}: {counted}")
    for note in report.notes:
        echo(f"note: {note}")
