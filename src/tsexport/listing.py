"""What there is, as records: models, targets and runtimes."""

from typing import TYPE_CHECKING

from tsexport.targets import resolve_target, target_names

if TYPE_CHECKING:
    from tsexport.models.registry import ModelEntry
    from tsexport.targets import Target
    from tsexport.types import RuntimeStatus


def list_models() -> "tuple[ModelEntry, ...]":
    """Return every registered model.

    Raises:
        ConfigurationError: a third party's entry point cannot be used.
    """
    from tsexport.models.registry import list_entries

    return list_entries()


def list_targets() -> "tuple[Target, ...]":
    """Return every target, with the device that it has where none is named.

    Raises nothing: a target that this machine's arithmetic is missing for is listed too.
    """
    return tuple(resolve_target(name) for name in target_names())


def list_runtimes() -> "tuple[RuntimeStatus, ...]":
    """Return every runtime: whether it is here, its version, and the pip command that installs it.

    Raises nothing: a third party's runtime that cannot be used is listed with the reason.
    """
    from tsexport.runtimes.registry import list_statuses

    return list_statuses()
