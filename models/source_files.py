"""The files that a model's definition is written in: they go into its digest, so that an edit empties the caches."""

import sys
from pathlib import Path
from types import ModuleType
from typing import cast

from tsexport.models.definition import Definition


def source_files(definition: Definition) -> tuple[Path, ...]:
    """Return the definition's own file first, then those of its package that it imports from, directly or not.

    What it takes from other packages is not the model's own.
    """
    own = cast(ModuleType, definition)
    package = own.__name__.rpartition(".")[0]
    found: dict[str, ModuleType] = {}
    waiting = [own]
    while waiting:
        module = waiting.pop()
        if module.__name__ in found:
            continue
        found[module.__name__] = module
        for value in vars(module).values():
            name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            other = sys.modules.get(name) if isinstance(name, str) else None
            if other is not None and package and other.__name__.rpartition(".")[0] == package:
                waiting.append(other)
    others = sorted(name for name in found if name != own.__name__)
    files = [getattr(found[name], "__file__", None) for name in (own.__name__, *others)]
    return tuple(Path(file) for file in files if file)
