"""What is known of a plan before its first build: what is there already, what cannot be built, and what is to be done.

Nothing is opened and nothing is written.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsexport.bundles.bundle import open_bundle
from tsexport.cache import default_root
from tsexport.errors import TsexportError, UsageError
from tsexport.extras import require
from tsexport.options import PATHS, BuildOptions
from tsexport.pipeline import plan_build
from tsexport.plans.files import read_plan
from tsexport.plans.headlines import with_headline
from tsexport.plans.records import Job, PlannedBuild, Row
from tsexport.plans.state import inputs_digest, is_there, place_of, require_replaceable
from tsexport.progress import Progress
from tsexport.stages.planned import Plan

if TYPE_CHECKING:
    from tsexport.targets import Target


@dataclass(frozen=True)
class CheckedBuild:
    """One build of a plan, its row as far as it is known, and what is planned where it can be.

    `inputs_sha256` is the digest of all that the bundle depends on, "" where it cannot be built.
    """

    build: PlannedBuild
    row: Row
    plan: Plan | None = None
    inputs_sha256: str = ""

    @property
    def target(self) -> "Target | None":
        return self.plan.context.target if self.plan is not None else None

    @property
    def is_to_be_built(self) -> bool:
        return self.row.status == "to build"

    def expected_s(self) -> float:
        """Return the seconds that the build is expected to take."""
        assert self.plan is not None
        memory = self.plan.context.cache.root / "times" / f"{self.plan.name}.json"
        return Progress(self.plan.steps, memory=memory, quiet=True).left_s()

    def job(self, running: Path) -> Job:
        """Return what a building process is told; `running` is there as long as the plan runs."""
        assert self.plan is not None
        return Job(self.plan.name, self.build.options, Path.cwd(), default_root().absolute(), running)


def check_plan(path: Path, over: Mapping[str, Any], *, force: bool) -> tuple[CheckedBuild, ...]:
    """Read a plan, and check of every build what can be checked without opening its model.

    A build that cannot be done becomes a row that says why; the others are not held up by it.

    Args:
        path: the plan file.
        over: options of the command line, which win.
        force: bundles that are there are built anew.

    Raises:
        ConfigurationError: the file cannot be used.
        UsageError: two builds would give the same bundle.
        MissingDependencyError: the packages of the extra `build` are not all here.
    """
    builds = read_plan(path, over)
    require("build", "building a bundle")
    checked = tuple(_check(replace(one, options=absolute(one.options)), force) for one in builds)
    _require_different(path, checked)
    return checked


def absolute(options: BuildOptions) -> BuildOptions:
    """Return options that mean the same in another folder."""
    paths = {name: path.absolute() for name in PATHS if (path := getattr(options, name)) is not None}
    file, colon, factory = options.model.partition(":")
    model = f"{Path(file).absolute()}{colon}{factory}" if Path(file).is_file() else options.model
    return replace(options, **paths, model=model)


def _check(build: PlannedBuild, force: bool) -> CheckedBuild:
    options = build.options
    row = Row(options.name or "", options.model, options.target, options.device, "", "failed")
    try:
        plan = plan_build(replace(options, force=True))  # what may be replaced is decided below
        row = replace(row, name=plan.name, path=str(plan.destination))
        place, inputs_sha256 = place_of(plan), inputs_digest(plan)
        if not force:
            if is_there(place, inputs_sha256):
                there = with_headline(replace(row, status="there already"), open_bundle(place.bundle))
                return CheckedBuild(build, there, plan, inputs_sha256)
            require_replaceable(place)
    except TsexportError as error:
        failed = replace(row, exit_code=error.exit_code, reason=error.message, next_step=error.next_step)
        return CheckedBuild(build, failed)
    return CheckedBuild(build, replace(row, status="to build"), plan, inputs_sha256)


def _require_different(path: Path, checked: Sequence[CheckedBuild]) -> None:
    places: dict[str, CheckedBuild] = {}
    for one in checked:
        if one.plan is None:
            continue
        place = os.path.realpath(one.row.path)
        other = places.setdefault(place, one)
        if other is not one:
            raise UsageError(
                f"{path.name}: two builds give the same bundle, {place}: {other.build.where} and {one.build.where}",
                next_step="give one of them another name or output",
            )
