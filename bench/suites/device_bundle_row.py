"""One row of the device bundle suite: build it as a user would, look at the bundle, write down what was found.

A process of its own (`python -m tsexport.bench.suites.device_bundle_row FOLDER MODEL TARGET DEVICE`), so that a crash
or a lack of memory loses this row alone.  FOLDER gets the bundle, and `answer.json`.
"""

import shlex
import subprocess
import sys
from pathlib import Path

import tsexport
from tsexport.bench.suites.device_bundle_records import Answer, BuiltBundle, Case, Kit, Options, Refusal
from tsexport.bundles.bundle import Bundle
from tsexport.bundles.engines import graph_of
from tsexport.bundles.manifest import ArtifactEntry, Manifest
from tsexport.codec import encode, write_whole
from tsexport.device.kit import DEVICE, SCRIPTS
from tsexport.errors import TsexportError
from tsexport.quantize.evaluation import budget_miss
from tsexport.targets import parse_target
from tsexport.types import Accuracy, file_sha256

ANSWER = "answer.json"
KIT_FILES = (*SCRIPTS, "settings.sh", "graph.sha256", "README.md")
COMMAND = (sys.executable, "-P", "-m", "tsexport.bench.suites.device_bundle_row")
"""-P: the working folder is no place to import from."""


def answer_of(case: Case, options: Options, folder: Path) -> Answer:
    """Build a row's bundle under `folder`, and return what lies in it or why there is none."""
    try:
        bundle = tsexport.build(
            case.model, case.target, device=case.device, output=folder, batch=options.batches, formats=options.formats,
            threads=options.threads, seconds=options.seconds, search_seconds=options.search_seconds,
        )  # fmt: skip
    except TsexportError as error:
        return Answer(refusal=Refusal(type(error).__name__, error.message, error.next_step))
    return Answer(bundle=look_at(bundle, case, options))


def look_at(bundle: Bundle, case: Case, options: Options) -> BuiltBundle:
    """Return what a bundle for a device holds."""
    manifest = bundle.manifest
    graph = graph_of(manifest)
    assert graph is not None, "a bundle for TensorRT without an ONNX file"
    target = parse_target(case.target, case.device)
    report = tsexport.check(bundle.path / graph.path, case.target, device=case.device)
    accuracy = accuracy_of_selected(manifest)
    checkpoint = manifest.provenance.checkpoint
    return BuiltBundle(
        device=target.device,
        tensorrt=str(target.tensorrt),
        parameters=manifest.model.parameters,
        weights=f"untrained, seed {manifest.provenance.seed}" if checkpoint is None else "reference checkpoint",
        artifact=manifest.selected.artifact,
        runtime=manifest.selected.runtime,
        precision=graph.precision,
        graph=graph.path,
        graph_bytes=graph.size_bytes,
        windows=accuracy.windows,
        output_error=accuracy.output_error,
        max_output_error=manifest.budget.max_output_error,
        metric=accuracy.metric,
        degradation=accuracy.degradation,
        max_degradation=manifest.budget.max_degradation,
        within_budget=not budget_miss(accuracy, manifest.budget),
        accepted=report.accepted,
        refusals=tuple(f"{one.node}: {one.reason}" for one in report.errors),
        rewrites=rewrites_for(manifest, str(target.tensorrt)),
        verified=bundle.verify().passed,
        kit=Kit(sum(1 for path in (bundle.path / DEVICE).iterdir()), kit_problems(bundle.path, graph, options.batches)),
    )


def accuracy_of_selected(manifest: Manifest) -> Accuracy:
    """Return the accuracy of what is selected."""
    wanted = (manifest.selected.artifact, manifest.selected.runtime)
    return next(one for one in manifest.accuracy if (one.artifact, one.runtime) == wanted)


def rewrites_for(manifest: Manifest, tensorrt: str) -> tuple[str, ...]:
    """Return the rewrites that a version of TensorRT needed, with their places: "layer-norm-as-parts: 7"."""
    reason = f"TensorRT {tensorrt} needs it"
    return tuple(f"{one.name}: {one.matches}" for one in manifest.rewrites if one.applied and one.reason == reason)


def kit_problems(root: Path, graph: ArtifactEntry, batches: tuple[int, ...]) -> tuple[str, ...]:
    """Return what is wrong with a bundle's kit; () where nothing is.

    Looked at are its files, whether bash reads the scripts, the digests of the files that go to the device, and the
    settings, which must be the graph's and name the batches, the first as the one that the engine is tuned for.

    Args:
        root: the bundle's folder.
        graph: what engines are built of.
        batches: as the build was given them.
    """
    kit = root / DEVICE
    absent = [f"device/{name} is not there" for name in KIT_FILES if not (kit / name).is_file()]
    if absent:
        return tuple(absent)
    found = []
    for script in (*SCRIPTS, "settings.sh"):
        done = subprocess.run(["bash", "-n", kit / script], capture_output=True, text=True)
        found += [f"device/{script}: {done.stderr.strip()}"] if done.returncode else []
    lines = [line.split("  ", 1) for line in (kit / "graph.sha256").read_text().splitlines()]
    listed = {path for _, path in lines}
    found += [f"device/graph.sha256 does not list {one.path}" for one in graph.files if one.path not in listed]
    for digest, path in lines:
        if file_sha256(root / path) != digest:
            found.append(f"{path} does not have the digest of device/graph.sha256")
    said = kit_settings(kit / "settings.sh")
    wanted = {
        "KIT_GRAPH": [graph.path],
        "KIT_PRECISION": [graph.precision],
        "KIT_BATCHES": [str(batch) for batch in sorted(batches)],
        "KIT_TUNED_BATCH": [str(batches[0])],
        "KIT_FROZEN_BATCH": [""],
    }
    found += [f"{name} is {said.get(name)}, not {value}" for name, value in wanted.items() if said.get(name) != value]
    names = [one.partition(":@batch")[0] for one in said.get("KIT_INPUTS", [])]
    found += [] if names == [spec.name for spec in graph.inputs] else [f"KIT_INPUTS are {names}"]
    return tuple(found)


def kit_settings(path: Path) -> dict[str, list[str]]:
    """Return what settings.sh sets, as bash reads it."""
    found = {}
    for line in path.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[name] = shlex.split(value.removeprefix("(").removesuffix(")"))
    return found


def main() -> None:
    """Answer for one row."""
    folder, model, target, device = Path(sys.argv[1]), *sys.argv[2:5]
    answer = answer_of(Case(model, target, device), Options(), folder)
    write_whole(folder / ANSWER, encode(answer))


if __name__ == "__main__":
    main()
