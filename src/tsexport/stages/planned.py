"""What a build is going to do, as a record; `tsexport.pipeline.plan_build` decides it."""

from dataclasses import dataclass
from pathlib import Path

from tsexport.quantize.recipe import Recipe
from tsexport.stages.context import Context


@dataclass(frozen=True)
class Plan:
    """One build, decided without importing torch: what --dry-run shows.

    Attributes:
        name: of the bundle.
        destination: where the bundle will stand.
        recipes: of the candidates, in the order in which they are tried.
        runtimes: on which artifacts are held against the source, and raced where they are here.
        missing: the pip commands of runtimes that are not installed, so not compared.
        steps: the name of each step, and the seconds that it is expected to take.
    """

    context: Context
    name: str
    destination: Path
    recipes: tuple[Recipe, ...]
    runtimes: tuple[str, ...]
    missing: tuple[str, ...]
    steps: tuple[tuple[str, float], ...]
