"""`tsexport build`: from a checkpoint to a bundle."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tsexport.cli.output import echo, print_json, print_table, say, verbosity
from tsexport.cli.plan_options import refuse_with_plan, refuse_without_plan

if TYPE_CHECKING:
    from tsexport.bundles.bundle import Bundle
    from tsexport.bundles.manifest import Manifest
    from tsexport.options import BuildOptions
    from tsexport.reports.candidates import CandidateRow
    from tsexport.stages.context import Context
    from tsexport.stages.planned import Plan

_FILE = click.Path(path_type=Path)


def _split(value: str | None) -> tuple[str, ...] | None:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if value else None


class _Percent(click.ParamType[float]):
    """A fraction, or a percentage: 0.05 or 5%."""

    name = "fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            text = str(value)
            return float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            self.fail(f"{value!r} is neither a fraction such as 0.05 nor a percentage such as 5%", param, ctx)


@click.command("build", short_help="Build a verified, measured bundle from a trained checkpoint.")
@click.argument("model", required=False)
@click.option("--target", help="What the bundle is for, for example cpu4-int8; see `tsexport targets`.")
@click.option("-o", "--output", type=_FILE, help="Folder that gets the bundle's folder.")
@click.option("--device", help="The target's device: avx2, arm64, xavier-nx@jetpack-5.1, @tensorrt-8.6, ...")
@click.option("--checkpoint", type=_FILE, help="Trained weights: .pth, .pt or .safetensors.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A field of the model's configuration.")
@click.option("--component", help="Build this part of the model alone, for example h-module of hrm-27m.")
@click.option("--config", type=_FILE, help="A TOML file of options; the command line overrides it.")
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=batch,60,16", help="An input, where the model says none."
)
@click.option("--calibration", type=_FILE, help="Data to calibrate with: .npz, or .csv or .parquet with [series].")
@click.option("--calibration-table", type=_FILE, help="Re-use the ranges in a bundle's artifacts/calibration.json.")
@click.option("--evaluation", type=_FILE, help="Data to judge accuracy on; as --calibration, plus `target`.")
@click.option("--metric", help="mse, mae, accuracy, log_loss or pinball; by default the one of the task.")
@click.option("--max-degradation", type=_Percent(), help="How much worse than the source; by default 5%.")
@click.option("--max-output-error", type=_Percent(), help="Relative RMS error where there are no labels; 5%.")
@click.option("--prune", type=_Percent(), help="Remove this fraction of channels and heads, for example 0.3.")
@click.option("--max-prune-degradation", type=_Percent(), help="What pruning may cost; without it only reported.")
@click.option("--rollout", type=int, metavar="K", help="Feed artifacts with their own output for K steps, and judge.")
@click.option(
    "--include-preprocessing",
    is_flag=True,
    default=None,
    help="Put scaling, gaps, calendar and scaling back into the graph: it then takes raw windows.",
)
@click.option("--objective", help="What selection looks for: latency (default) or size.")
@click.option("--batch", "batches", type=int, multiple=True, help="A batch size to measure; by default 1, 10 and 32.")
@click.option("--runtime", help="Select for this runtime alone.")
@click.option("--formats", help="Which of onnx, torchscript and openvino to make, with commas.")
@click.option("--selection", type=_FILE, help="Repeat the choices of a selection.json.")
@click.option("--table", type=_FILE, help="A latency table of your own, in place of the published ones.")
@click.option("--atol", type=float, help="Absolute parity tolerance of the fp32 artifacts.")
@click.option("--rtol", type=float, help="Relative parity tolerance of the fp32 artifacts.")
@click.option("--threads", type=int, help="Threads to measure with; by default the target's cores, as far as here.")
@click.option("--seconds", type=float, help="Measure at most so long for each artifact, runtime and batch; 4.")
@click.option("--search-seconds", type=float, help="Look for layers to leave in floating point at most so long; 300.")
@click.option("--seed", type=int, help="Of drawn windows, random inputs and untrained weights; by default 0.")
@click.option("--name", help="The bundle's name, in place of <model>[-<component>]-<target>.")
@click.option("--force", is_flag=True, default=None, help="Replace a bundle of that name.")
@click.option("--plan", "plan_file", type=_FILE, help="A TOML file of many builds, in place of MODEL and --target.")
@click.option("--executor", help="Who builds the plan: local (default), or dask.")
@click.option("--jobs", type=int, help="How many builds of the plan run at once; by default as many as fit here.")
@click.option("--scheduler", metavar="ADDRESS", help="Of a Dask cluster; by default processes of this machine.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
def build(
    config: Path | None,
    settings: tuple[str, ...],
    inputs: tuple[str, ...],
    batches: tuple[int, ...],
    formats: str | None,
    plan_file: Path | None,
    executor: str | None,
    jobs: int | None,
    scheduler: str | None,
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> int | None:
    """Build a bundle from MODEL: export, verify, quantize, measure, judge and pack; or with --plan many at once.

    MODEL is a registered name (`tsexport models`), module:factory, or an .onnx, TorchScript or .pt2 file.

    \b
    Exit codes: 0 done, 2 bad input, 3 accuracy or parity missed,
    4 latency budget missed, 5 not supported by the target.
    """
    from tsexport.models.settings import parse_input, parse_settings
    from tsexport.options import merge, read_config

    values = {
        **given,
        "settings": parse_settings(settings),
        "inputs": tuple(parse_input(text) for text in inputs) or None,
        "batches": batches or None,
        "formats": _split(formats),
    }
    if plan_file is not None:
        from tsexport.cli.plan import run_plan_file
        from tsexport.plans.running import HowToBuild

        refuse_with_plan({**given, "config": config})
        how = HowToBuild(executor or "local", jobs, scheduler, bool(given["force"]))
        return run_plan_file(plan_file, values, how, dry_run=dry_run, as_json=as_json)
    refuse_without_plan({"executor": executor, "jobs": jobs, "scheduler": scheduler})
    run(merge(read_config(config) if config else {}, values), dry_run=dry_run, as_json=as_json)
    return None


def run(options: "BuildOptions", *, dry_run: bool, as_json: bool) -> None:
    """Plan, and unless it is a dry run build and print what came of it."""
    from tsexport.pipeline import plan_build, run_build

    plan = plan_build(options)
    if dry_run:
        _show_plan(plan, as_json)
        return
    announce: Callable[[str], None] = say
    bundle = run_build(plan, quiet=verbosity().quiet, say=announce)
    if as_json:
        from tsexport.codec import to_plain

        print_json({"path": str(bundle.path), "manifest": to_plain(bundle.manifest)})
        return
    _show_bundle(bundle)


def _show_plan(plan: "Plan", as_json: bool) -> None:
    context = plan.context
    if as_json:
        document = {
            "path": str(plan.destination),
            "model": context.identity.name,
            "component": context.options.component,
            "target": context.target.name,
            "instruction_set": context.target.instruction_set,
            "here": context.target.here,
            "tensorrt": context.target.tensorrt,
            "threads": context.threads,
            "include_preprocessing": context.options.include_preprocessing,
            "prune": context.options.prune,
            "rollout": context.options.rollout,
            "calibration_table": str(context.options.calibration_table) if context.options.calibration_table else None,
            "selection": str(context.options.selection) if context.options.selection else None,
            "table": str(context.options.table) if context.options.table else None,
            "objective": context.options.objective,
            "formats": list(context.options.formats),
            "runtimes": list(plan.runtimes),
            "recipes": [recipe.name for recipe in plan.recipes],
            "steps": [name for name, _ in plan.steps],
        }
        print_json({"dry_run": True, **document})
        return
    rows = [
        ("bundle", str(plan.destination)),
        ("model", f"{context.identity.name} ({context.identity.kind})"),
        *([("component", context.options.component)] if context.options.component else []),
        ("checkpoint", str(context.identity.checkpoint or "none: initialised from the seed")),
        ("target", _target_text(context)),
        ("threads", str(context.threads)),
        ("data", str(context.options.calibration or ("the reference series" if context.plan.reference else "none"))),
        *([("ranges", f"those of {context.options.calibration_table}")] if context.options.calibration_table else []),
        *([("preprocessing", "in the graph: it takes raw windows")] if context.options.include_preprocessing else []),
        *([("pruning", f"{context.options.prune:g} of the channels")] if context.options.prune is not None else []),
        *([("rollout", f"{context.options.rollout} steps")] if context.options.rollout is not None else []),
        *([("selection", f"repeats {context.options.selection}")] if context.options.selection else []),
        *([("latency table", str(context.options.table))] if context.options.table else []),
        *([("objective", "the smallest size")] if context.options.objective == "size" else []),
        ("formats", ", ".join(context.options.formats)),
        ("runtimes here", ", ".join(plan.runtimes)),
        ("recipes", ", ".join(recipe.name for recipe in plan.recipes) or "none: fp32 target"),
        ("steps", ", ".join(name for name, _ in plan.steps)),
    ]
    print_table(("what", "value"), rows, title="dry run: nothing is built")


def _target_text(context: "Context") -> str:
    target, cpu = context.target, context.cpu
    if target.here:
        return f"{target.name} on {cpu.model} ({cpu.instruction_set})"
    return f"{target.name}: {target.summary}; not this machine, so latency is not measured"


def _show_bundle(bundle: "Bundle") -> None:
    """Print candidates, measurements and the published budgets, and where the bundle is."""
    from tsexport.bench.rows import measurement_rows, race_rows, verdict_rows
    from tsexport.bundles.measured import read_measurements
    from tsexport.reports.candidates import candidate_rows
    from tsexport.reports.explaining import explanations

    manifest = bundle.manifest
    for record in read_measurements(bundle):
        for result in record.races:
            print_table(
                ("artifact", "threads", "samples", "p50", "speed", "95 % interval"),
                [(r.name, r.threads, r.samples, r.p50, r.speedup, r.interval) for r in race_rows(result)],
                title=f"side by side at batch {result.batch}, against {result.baseline}",
            )
        if manifest.candidates:
            print_table(
                ("candidate", "runtime", "speed (95 %)", "size", "output error", manifest.budget.metric, "float layers",
                 "in int8", "conversions", "status", "reason"),
                [_candidate_cells(row) for row in candidate_rows(manifest.candidates, record.races)],
                title="candidates",
            )  # fmt: skip
        for one in explanations(manifest, record)[:1]:
            print_table(
                ("artifact", "MACs", "in int8", "conversions", "moved", "MACs a byte", "bound (projected)",
                 "median (measured)", "held up by"),
                [(one.artifact, one.macs, one.int8_share, one.conversions, one.moved, one.intensity, one.projected,
                  one.measured, one.bound)],
                title="why not faster",
            )  # fmt: skip
        if record.measurements:
            print_table(
                ("artifact", "runtime", "batch", "threads", "p50", "p90", "p99", "throughput", "load", "peak memory"),
                [
                    (
                        m.artifact,
                        m.runtime,
                        m.batch,
                        m.threads,
                        m.p50,
                        m.p90,
                        m.p99,
                        m.throughput,
                        m.load,
                        m.peak_memory,
                    )
                    for m in measurement_rows(record.measurements)
                ],
                title=f"measured on {record.machine.cpu_model}, {record.machine.instruction_set}",
            )
        if record.verdicts:
            print_table(
                ("budget", "device", "precision", "batch", "published", "value", "status", "reason"),
                [
                    (v.budget, v.device, v.precision, v.batch, v.published, v.value, v.status, v.reason)
                    for v in verdict_rows(record.verdicts)
                ],
                title="against the published tables",
            )
    _show_projection(bundle)
    _show_pruning(manifest)
    _show_buildup(manifest)
    say(f"selected {manifest.selected.artifact} on {manifest.selected.runtime}: {manifest.selected.why}")
    echo(str(bundle.path))


def _show_projection(bundle: "Bundle") -> None:
    from tsexport.bench.outlook import outlook_row
    from tsexport.bench.projected_rows import projection_rows
    from tsexport.bundles.measured import read_projections
    from tsexport.stages.projecting import error_text

    for record in read_projections(bundle):
        if not record.projections:
            continue
        print_table(
            ("batch", "mode", "projected", "at least, at peak", "bound by", "launch", "memory", "compute", "kernels"),
            [
                (p.batch, p.mode, p.total, p.least, p.bound, p.launch, p.memory, p.compute, p.kernels)
                for p in projection_rows(record.projections)
            ],
            title=f"projected, not measured: {record.artifact} on {record.title}, TensorRT {record.tensorrt}",
        )
        if record.outlooks:
            print_table(
                ("budget of", "device", "precision", "batch", "asked", "projected", "at least, at peak", "bound by",
                 "answer"),
                [outlook_row(one) for one in record.outlooks],
                title="what is projected of the published rows, which only a measurement judges",
            )  # fmt: skip
        say(f"projections: {error_text(record.error)}")


def _show_pruning(manifest: "Manifest") -> None:
    record = manifest.pruning
    if record is None:
        return
    changes = (
        ("channels of pruned groups", record.channels),
        ("heads of pruned attentions", record.heads),
        ("parameters", record.parameters),
        ("FLOPs of one sample", record.flops),
        ("fp32 ONNX, bytes", record.size_bytes),
    )
    rows = [
        (name, f"{one.before:,}", "n/a" if one.after is None else f"{one.after:,}", f"{-(one.share_removed or 0):+.1%}")
        for name, one in changes
        if one.before
    ]
    rows.append(
        ("output error", f"{record.unrefitted.output_error:.2%}", f"{record.accuracy.output_error:.2%}", "refit")
    )
    print_table(("pruning", "before", "after", "change"), rows, title=f"pruned by {record.fraction:.0%}")
    for left in record.left:
        say(f"left as it was: {left.layer}: {left.reason}")


def _show_buildup(manifest: "Manifest") -> None:
    if manifest.rollouts:
        print_table(
            ("artifact", "runtime", "step 1", f"step {manifest.rollouts[0].steps}", "allowed"),
            [
                (one.artifact, one.runtime, f"{one.errors[0]:.2%}", f"{one.errors[-1]:.2%}", f"{one.allowed:.2%}")
                for one in manifest.rollouts
            ],
            title=f"fed with its own output: {manifest.rollouts[0].feedback}",
        )
    if manifest.quantiles:
        print_table(
            ("artifact", "runtime", "crossed", "source", "new", "coverage"),
            [
                (
                    one.artifact,
                    one.runtime,
                    f"{one.crossed:.2%}",
                    f"{one.source_crossed:.2%}",
                    f"{one.new:.2%}",
                    " ".join(f"{share:.1%}" for share in one.coverage) or "n/a",
                )
                for one in manifest.quantiles
            ],
            title=f"quantiles {', '.join(f'{level:g}' for level in manifest.quantiles[0].levels)}",
        )


def _candidate_cells(row: "CandidateRow") -> tuple[str, ...]:
    one = row.candidate
    return (
        one.name,
        one.runtime,
        row.speedup,
        f"{one.size_bytes / 1e6:.2f} MB" if one.size_bytes else "-",
        f"{one.accuracy.output_error:.2%}" if one.accuracy else "-",
        _degradation(one.accuracy.degradation if one.accuracy else None),
        row.float_layers or "-",
        row.int8_share or "-",
        row.conversions or "-",
        one.status,
        one.reason,
    )


def _degradation(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2%}"
