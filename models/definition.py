"""What a model's file offers, and the checks that configurations share.

A model is one file.  It defines `Config`, a frozen dataclass that validates itself and knows the tensors the model
takes and gives, and `build(config)`, which returns the `nn.Module`.

Configurations are read far more often than models are built (listing, `--set`, cache keys), and importing torch takes
seconds.  So a model's file does not import torch at its top: the `nn.Module` classes stand in a function named
`network`, which imports torch and is cached, and `build` calls it.

A model that must keep some modules in fp32 where the rest is fp16 or bf16 names them in `FP32_LAYERS`.

A model that can be built in parts has a third name, `COMPONENTS`: one `Component` for each part.  A part's weights are
those of the whole model, which is built and loaded first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from tsexport.errors import ConfigurationError, UsageError, did_you_mean
from tsexport.types import Task, TensorSpec

if TYPE_CHECKING:
    from torch import nn


SHAPES_NO_WEIGHT: Mapping[str, bool] = {"shapes no weight": True}
"""Metadata of a `dataclasses.field` that changes no weight's shape and is costly to try where a checkpoint misfits."""

Sizes = Mapping[str, Mapping[str, object]]
"""Named sizes: the fields that each one sets, for example {"small": {"hidden": 64}}."""


class ModelConfig(Protocol):
    """A frozen dataclass of ints, floats, booleans, strings and tuples of numbers.

    `__post_init__` raises ConfigurationError.  A class attribute `SIZES: ClassVar[Sizes]`, where there is one, names
    sizes that `--set size=NAME` asks for (see `sizes_of`); `size` itself is then no field.  A property `task`, where
    there is one, says what a model that can do more than one thing does in this configuration (see `task_of`).
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...


@dataclass(frozen=True)
class Tensors:
    """What a model, or a part of one, takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Component:
    """A part of a model that `--component` builds alone.

    `tensors` takes the model's configuration, and raises ConfigurationError where that has no such part.  `take` takes
    the whole model and returns the part, which shares the whole's weights.
    """

    name: str
    summary: str
    tensors: Callable[[Any], Tensors]
    take: Callable[[Any], "nn.Module"]


@dataclass(frozen=True)
class Narrowing:
    """What of a model stays in fp32 where torch computes the rest in fp16 or bf16, beyond `FP32_LAYERS`.

    `keep` are modules, as their parent calls them; `within` the children that alone are cast, () for all.
    """

    keep: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    reason: str = ""


class Definition(Protocol):
    """A model's module: `tsexport.models.<file>`, or a third party's.

    Four more names may be there.  `COMPONENTS` are the parts that can be built alone.  `FP32_LAYERS` are the names of
    modules, as their parent calls them ("film"), that stay in fp32 in an artifact of fp16 or bf16; `NARROWING` says
    what more does in torch.
    `misfit_hint(config, misfit) -> str` says what to do about a checkpoint that does not fit (a
    `models.loading.Misfit`), where the model knows better than its settings; "" where it does not.
    """

    Config: type[ModelConfig]

    @staticmethod
    def build(config: Any) -> "nn.Module": ...


def components_of(definition: Definition) -> tuple[Component, ...]:
    """Return the parts that a model can be built in, () where it has none."""
    components: tuple[Component, ...] = getattr(definition, "COMPONENTS", ())
    return components


def fp32_layers_of(definition: Definition) -> tuple[str, ...]:
    """Return the modules that stay in fp32 where the rest is fp16 or bf16, () where it makes no difference."""
    layers: tuple[str, ...] = getattr(definition, "FP32_LAYERS", ())
    return layers


def narrowing_of(definition: Definition) -> Narrowing:
    """Return what more stays in fp32 in torch, nothing where the model does not say."""
    narrowing: Narrowing = getattr(definition, "NARROWING", Narrowing())
    return narrowing


def component_of(definition: Definition, name: str, *, model: str) -> Component:
    """Return the part of a model that bears `name`.

    Raises:
        UsageError: the model has no such part, or none at all.
    """
    components = {component.name: component for component in components_of(definition)}
    if not components:
        raise UsageError(
            f"--component {name} does not apply to {model}: it is built whole, it has no components",
            next_step="Leave --component out.",
        )
    if name not in components:
        raise UsageError(
            f"{model} has no component {name!r}{did_you_mean(name, components)}; it has {', '.join(components)}",
            next_step=f"Write for example --component {next(iter(components))}, or leave it out for the whole model.",
        )
    return components[name]


def sizes_of(config_type: type[ModelConfig]) -> Sizes:
    """Return the named sizes of a configuration, {} where it has none."""
    sizes: Sizes = getattr(config_type, "SIZES", {})
    return sizes


def task_of(config: ModelConfig, usual: Task) -> Task:
    """Return what a model does in a configuration: what that says itself, else what the model `usual`ly does."""
    task: Task = getattr(config, "task", usual)
    return task


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
