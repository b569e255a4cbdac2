"""Message passing without scattering, against the two scatters that exporters write, in ONNX Runtime.

weather-gnn is exported three times, with the same weights and the same cleaning of the graph: with the sum over a
receiver's edges as ScatterElements (what torch makes of `scatter_add`), as ScatterND (written here: what torch makes of
`index_put` with `accumulate` drops the sum), and as the rewrite gather-messages makes it.  All three answer alike, or
the suite ends.

Goal, at batch 1 on one thread: 1.4 times faster than ScatterND.

How to run, on a quiet machine, from a checkout where tsexport is installed with its extra `build`:

    python bench/suites/message_passing.py [--processes 3] [--seconds 30] [--set mesh_level=2]

Results go to bench/results/message_passing-<instruction set>.json and .md.

What it does not say: how other graphs fare, or batches above 1, where ScatterND needs a transposition on either side.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsexport.bench.fingerprint import Machine, fingerprint
from tsexport.bench.race import Contestant, race
from tsexport.bench.statistics import Ratio, Summary
from tsexport.bench.suites.goals import Status, status_of
from tsexport.bench.suites.report import interval_text, machine_text, publish, ratio_text, results_path, table
from tsexport.errors import InconclusiveError, TsexportError
from tsexport.models.settings import parse_settings
from tsexport.types import Array, Artifact, Feeds, ModelSpec, Tolerance, random_feeds

MODEL, REWRITE = "weather-gnn", "gather-messages"
OURS, SCATTER_ND, SCATTER_ELEMENTS = "gathered", "ScatterND", "ScatterElements"
GOAL = 1.4
SAME = Tolerance("message-passing", 2e-5, 2e-4, "the same sums in another order")
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Row:
    """One export: its size, and what it took at batch 1 on one thread.  `ours_is_faster` is what is judged."""

    name: str
    nodes: int
    size_bytes: int
    summary: Summary
    ours_is_faster: Ratio


@dataclass(frozen=True)
class Report:
    """Everything that one run measured."""

    suite: str
    machine: Machine
    model: str
    settings: Mapping[str, Any]
    processes: int
    rounds: int
    rows: tuple[Row, ...]
    goal: float
    status: Status
    reason: str
    schema_version: int = SCHEMA_VERSION


def as_scatter_nd(source: Artifact, receivers: Sequence[Array], spec: ModelSpec, path: Path) -> tuple[Artifact, int]:
    """Write ScatterElements over axis 1 as ScatterND; return the artifact and its number of nodes.

    Args:
        source: the export with ScatterElements.
        receivers: the constant indices of each in the order of the graph, [edges].
    """
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes import common

    from tsexport.exporters.onnx_file import finish_onnx
    from tsexport.exporters.rewrites.cleaning import add_initializer

    model = ir.from_proto(onnx.load(source.path))
    scatters = [node for node in model.graph if node.op_type == SCATTER_ELEMENTS]
    for number, (node, indices) in enumerate(zip(scatters, receivers, strict=True)):
        turned = {"perm": [1, 0, 2]}
        place = add_initializer(model, f"receivers_{number}", indices[:, None])
        data, updates = (ir.node("Transpose", [node.inputs[at]], turned, name=f"turn_{number}_{at}") for at in (0, 2))
        inputs = [data.outputs[0], place, updates.outputs[0]]
        summed = ir.node("ScatterND", inputs, {"reduction": "add"}, name=f"sum_{number}")
        back = ir.node("Transpose", [summed.outputs[0]], turned, name=f"turn_{number}_back")
        model.graph.insert_before(node, [data, updates, summed, back])
        node.outputs[0].replace_all_uses_with(back.outputs[0])
    common.RemoveUnusedNodesPass()(model)
    proto = ir.to_proto(model)
    return finish_onnx(proto, spec, path, ("ScatterElements as ScatterND",)), len(proto.graph.node)


def export_all(settings: Mapping[str, object], folder: Path) -> tuple[dict[str, tuple[Artifact, int]], ModelSpec]:
    """Return the three artifacts with their numbers of nodes, by name, and the model's specification.

    Raises:
        InconclusiveError: an export does not hold the operator it is named after, or answers otherwise.
    """
    import onnx

    from tsexport.exporters.conversion import OnnxConverter
    from tsexport.exporters.onnx_file import ort_run
    from tsexport.models.sources import identify, open_source
    from tsexport.runtimes.comparison import compare_outputs

    source = open_source(identify(MODEL, settings=settings))
    assert source.module is not None
    converter = OnnxConverter(source.module, None, source.spec, None)
    elements = converter.convert(folder / f"{SCATTER_ELEMENTS}.onnx", (REWRITE,))
    ours = converter.convert(folder / f"{OURS}.onnx")
    receivers = [buffer.numpy() for name, buffer in source.module.named_buffers() if name.endswith(".receivers")]
    made = {
        SCATTER_ND: as_scatter_nd(elements.artifact, receivers, source.spec, folder / f"{SCATTER_ND}.onnx"),
        SCATTER_ELEMENTS: (elements.artifact, elements.nodes),
        OURS: (ours.artifact, ours.nodes),
    }
    feeds = random_feeds(source.spec.inputs, 1, 0)
    expected = source.run(feeds)
    for name, (artifact, _) in made.items():
        kinds = {node.op_type for node in onnx.load(artifact.path).graph.node}
        if {kind for kind in kinds if kind.startswith("Scatter")} != ({name} - {OURS}):
            raise InconclusiveError(f"the export named {name} holds {', '.join(sorted(kinds))}")
        compared = compare_outputs(expected, ort_run(artifact.path.read_bytes(), feeds), SAME, scaled=True)
        if not all(one.passed for one in compared):
            raise InconclusiveError(f"{name} answers otherwise: {compared[0].reason}")
    return made, source.spec


def run(settings: Mapping[str, object], processes: int, seconds: float) -> Report:
    """Export, check and race.

    Raises:
        TsexportError: an export or a race failed.
    """
    machine = fingerprint()
    with tempfile.TemporaryDirectory(prefix="tsexport-messages-") as folder:
        made, spec = export_all(settings, Path(folder))
        contestants = [Contestant(artifact, "onnxruntime", 1, name) for name, (artifact, _) in made.items()]
        feeds: Feeds = random_feeds(spec.inputs, 8, 1)
        result = race(
            contestants, feeds, 1, baseline=OURS, max_seconds=seconds, processes=processes,
            progress=lambda what, done: print(f"{100 * done:3.0f} % {what}", file=sys.stderr),
        )  # fmt: skip
    rows = tuple(
        Row(one.name, made[one.name][1], made[one.name][0].size_bytes, one.summary, inverse(one.speedup))
        for one in result.entries
    )
    over = next(row for row in rows if row.name == SCATTER_ND).ours_is_faster
    status: Status = "not measured" if settings else status_of(over, GOAL)
    reason = "the goal is for the model's default sizes; --set changed them" if settings else ""
    return Report("message_passing", machine, MODEL, settings, processes, result.rounds, rows, GOAL, status, reason)


def inverse(ratio: Ratio) -> Ratio:
    """Return how many times faster the baseline is; a low end of 0 has no upper bound as its inverse."""
    high = None if ratio.high is None or ratio.low <= 0 else 1 / ratio.low
    return Ratio(1 / ratio.value, 0.0 if ratio.high is None else 1 / ratio.high, high, ratio.confidence)


def report_text(report: Report) -> str:
    """Return the tables as Markdown."""
    rows = [
        [row.name, f"{row.nodes}", f"{row.size_bytes / 1e6:.2f}", f"{row.summary.median_ms:.2f}",
         "" if row.name == OURS else ratio_text(row.ours_is_faster)]
        for row in report.rows
    ]  # fmt: skip
    over = next(row for row in report.rows if row.name == SCATTER_ND).ours_is_faster
    goal = [f"{report.goal:g} times faster than {SCATTER_ND}", f"{over.value:.2f}", interval_text(over.low, over.high)]
    settings = ", ".join(f"{key}={value}" for key, value in report.settings.items())
    return "\n".join(
        [
            f"# Message passing of {report.model}{f' with {settings}' if settings else ''} in ONNX Runtime",
            "",
            f"{machine_text(report.machine)}; one thread, batch 1, {report.processes} fresh processes of each, "
            f"{report.rounds} rounds together.",
            "",
            table(["export", "nodes", "MB", "median ms", f"{OURS} is faster"], rows),
            "",
            table(["goal", "measured", "interval", "status", "why"], [[*goal, report.status, report.reason]]),
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; return the exit code: 0, or that of the error that ended it.  A missed goal is no error."""
    args = _parser().parse_args(arguments)
    try:
        report = run(parse_settings(args.settings), args.processes, args.seconds)
    except TsexportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    publish(report, report_text(report), args.output or results_path(report.suite, report.machine))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=3, help="fresh processes of each export; 3")
    parser.add_argument("--seconds", type=float, default=30.0, help="at most, for all rounds; 30")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of the model; the goal is then not judged",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="the .json to write; the .md goes beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
