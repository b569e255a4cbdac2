"""What a model's file offers, and the checks that configurations share.

A model is one file.  It defines `Config`, a frozen dataclass that validates itself and knows the tensors the model
takes and gives, and `build(config)`, which returns the `nn.Module`.

Configurations are read far more often than models are built (listing, `--set`, cache keys), and importing torch takes
seconds.  So a model's file does not import torch at its top: the `nn.Module` classes stand in a function named
`network`, which imports torch and is cached, and `build` calls it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from tsexport.errors import ConfigurationError
from tsexport.types import TensorSpec

if TYPE_CHECKING:
    from torch import nn


Sizes = Mapping[str, Mapping[str, object]]
"""Named sizes: the fields that each one sets, for example {"small": {"hidden": 64}}."""


class ModelConfig(Protocol):
    """A frozen dataclass of ints, floats, booleans, strings and tuples of numbers.

    `__post_init__` raises ConfigurationError.  A class attribute `SIZES: ClassVar[Sizes]`, where there is one, names
    sizes that `--set size=NAME` asks for (see `sizes_of`); `size` itself is then no field.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...


class Definition(Protocol):
    """A model's module: `tsexport.models.<file>`, or a third party's.

    It may also have `misfit_hint(config, misfit) -> str`: what to do about a checkpoint that does not fit (a
    `models.loading.Misfit`), where the model knows better than its settings; "" where it does not.
    """

    Config: type[ModelConfig]

    @staticmethod
    def build(config: Any) -> "nn.Module": ...


def sizes_of(config_type: type[ModelConfig]) -> Sizes:
    """Return the named sizes of a configuration, {} where it has none."""
    sizes: Sizes = getattr(config_type, "SIZES", {})
    return sizes


def require_positive(config: ModelConfig, *names: str) -> None:
    """Raise ConfigurationError for the first of the fields `names` that is below 1, or a tuple with such a number."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, tuple):
            if not value or min(value) < 1:
                raise ConfigurationError(f"{name} is {value}; it must hold one number or more, each 1 or more")
        elif value < 1:
            raise ConfigurationError(f"{name} is {value}; it must be 1 or more")


def require_dropout(dropout: float) -> None:
    """Raise ConfigurationError unless a probability of dropout is at least 0 and below 1."""
    if not 0 <= dropout < 1:
        raise ConfigurationError(f"dropout is {dropout}; it must be at least 0 and below 1")


def require_classes(classes: int) -> None:
    """Raise ConfigurationError unless a classifier has two classes or more."""
    if classes < 2:
        raise ConfigurationError(f"classes is {classes}; a classifier needs 2 or more")


def require_divisible(values: Mapping[str, int]) -> None:
    """Raise ConfigurationError unless the first of two named values is a multiple of the second."""
    (name, value), (divisor_name, divisor) = values.items()
    if value % divisor:
        raise ConfigurationError(
            f"{name} is {value}, which {divisor_name} {divisor} does not divide",
            next_step=f"Choose {name} as a multiple of {divisor_name}.",
        )
