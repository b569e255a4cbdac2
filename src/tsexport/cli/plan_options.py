"""Which options of `tsexport build` go with --plan, and which do not."""

from collections.abc import Mapping

from tsexport.errors import UsageError

_IN_THE_PLAN = {
    "model": ("MODEL", "name the models in the plan, in [matrix] or [[builds]]"),
    "target": ("--target", "name the targets in the plan, in [matrix] or [[builds]]"),
    "name": ("--name", "give a build of the plan its name there: one name cannot be that of all"),
    "config": ("--config", "put its tables into the plan, which has [build], [model], [[inputs]] and [series] too"),
}


def refuse_with_plan(given: Mapping[str, object]) -> None:
    """Raise UsageError where an option was given that the plan itself holds."""
    for key, (how, instead) in _IN_THE_PLAN.items():
        if given.get(key) is not None:
            raise UsageError(f"{how} does not go with --plan", next_step=instead)


def refuse_without_plan(given: Mapping[str, object]) -> None:
    """Raise UsageError where an option was given that is about plans, and no plan was."""
    for key, value in given.items():
        if value is not None:
            raise UsageError(
                f"--{key} goes with --plan, and no plan was given",
                next_step="give --plan FILE with the builds in it, in place of MODEL and --target",
            )
