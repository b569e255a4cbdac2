"""The optional packages ("extras") of tsexport, as its own installed metadata lists them.

So the list stands in one place, pyproject.toml, and what a message says to install is what pip will install.
"""

import importlib.util
import re
from importlib.metadata import PackageNotFoundError, requires

from tsexport.errors import MissingDependencyError

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_IMPORTED_AS = {"cyclonedx-python-lib": "cyclonedx"}
_EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")


def packages_of(extra: str) -> tuple[str, ...]:
    """Return the distributions of an extra, or () for an unknown one and where tsexport itself is not installed."""
    try:
        requirements = requires("tsexport") or []
    except PackageNotFoundError:  # imported from a bare checkout, which has no metadata
        return ()
    found = []
    for requirement in requirements:
        name, marker = _NAME.match(requirement), _EXTRA.search(requirement)
        if name is not None and marker is not None and marker.group(1) == extra:
            found.append(name.group())
    return tuple(found)


def require(extra: str, purpose: str, *, only: tuple[str, ...] = ()) -> None:
    """Check that every package of an extra is here, without importing any.

    Args:
        extra: a name of `[project.optional-dependencies]`.
        purpose: what needs it, for the message ("tsexport build").
        only: the packages of it that are needed; all by default.

    Raises:
        MissingDependencyError: names what is missing, and the pip command.
    """
    missing = [name for name in only or packages_of(extra) if not _is_importable(name)]
    if missing:
        raise MissingDependencyError(
            f"{purpose} needs {', '.join(missing)}, not installed here", next_step=f'pip install "tsexport[{extra}]"'
        )


def module_of(distribution: str) -> str:
    """Return the name by which a distribution of an extra is imported; tests/test_packaging.py holds them to it."""
    return _IMPORTED_AS.get(distribution, distribution.replace("-", "_"))


def _is_importable(distribution: str) -> bool:
    try:
        return importlib.util.find_spec(module_of(distribution)) is not None
    except (ImportError, ValueError):  # an import hook refuses it, or something half-imported stands under its name
        return False
