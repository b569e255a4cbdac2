"""Put a checkpoint into a module, strictly; where it does not fit, say which settings would."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from tsexport.errors import CheckpointError, ConfigurationError
from tsexport.models.checkpoints import Checkpoint
from tsexport.models.definition import SHAPES_NO_WEIGHT, Definition, ModelConfig, sizes_of
from tsexport.models.settings import SIZE

if TYPE_CHECKING:
    from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]
LISTED = 5
MAX_TRIALS = 400
MAX_CHANGES = 3


@dataclass(frozen=True)
class Misfit:
    """What keeps a state dict from fitting a module.  `reshaped` has (name, shape in the model, shape in the file)."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def __str__(self) -> str:
        parts = [
            f"missing: {_list(self.missing)}" if self.missing else "",
            f"unexpected: {_list(self.unexpected)}" if self.unexpected else "",
            *(
                f"{name} is {list(model)} in the model and {list(file)} in the file"
                for name, model, file in self._few()
            ),
        ]
        if len(self.reshaped) > LISTED:
            parts.append(f"and {len(self.reshaped) - LISTED} more of another shape")
        return "; ".join(part for part in parts if part)

    def _few(self) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        return list(self.reshaped[:LISTED])


def load_strictly(
    module: "nn.Module",
    checkpoint: Checkpoint,
    *,
    model: str,
    definition: Definition | None = None,
    config: ModelConfig | None = None,
) -> tuple[str, ...]:
    """Load every tensor of a checkpoint into `module` and return what had to be unwrapped for it to fit.

    A prefix that was stripped goes back on where the module's own names begin with it.  With a definition and its
    configuration a misfit is explained in terms of settings.

    Raises:
        CheckpointError: a name is missing or unexpected, or a tensor has another shape.
    """
    wanted = _shapes(module)
    state, wrapping = _rewrap(checkpoint, wanted)
    misfit = compare(wanted, {name: tuple(value.shape) for name, value in state.items()})
    if misfit:
        hint = ""
        if definition and config:
            hint = _own_hint(definition, config, misfit) or explain(definition, config, state, misfit)
        raise CheckpointError(
            f"{checkpoint.path} does not fit {model}: {misfit}",
            next_step=hint or "Use the model and the settings that the checkpoint was trained with.",
        )
    module.load_state_dict(state, strict=True)
    return wrapping


def compare(wanted: Shapes, found: Shapes) -> Misfit:
    """Return how the tensors found differ from those wanted."""
    return Misfit(
        missing=tuple(name for name in wanted if name not in found),
        unexpected=tuple(name for name in found if name not in wanted),
        reshaped=tuple((n, wanted[n], found[n]) for n in wanted if n in found and wanted[n] != found[n]),
    )


def explain(definition: Definition, config: ModelConfig, state: Mapping[str, "Tensor"], misfit: Misfit) -> str:
    """Return which settings look wrong, found by building the model (without storage) with other values.

    Named sizes are tried first.  Then each field is changed alone: a field is suspected where that changes a tensor
    that does not fit.  Then values that could be read off the file (its dimensions, their products with other sizes,
    counts of layers) are tried, the best kept, up to three fields deep.  Settings are promised only where the whole
    file then fits.
    """
    found = {name: tuple(value.shape) for name, value in state.items()}
    shapes_of = _shapes_by_config(definition)
    for size, preset in sizes_of(type(config)).items():
        sized = _changed(config, preset)
        if sized is not None and not compare(shapes_of(sized), found):
            return f"It fits with --set {SIZE}={size}."
    suspects = _suspects(shapes_of, config, misfit)
    fitting, left, changes = config, misfit, dict[str, object]()
    for _ in range(MAX_CHANGES):
        trials = (
            (field, value)
            for field, counts in suspects.items()
            for value in _values(fitting, field, found, counts_modules=counts)
        )
        scored = [
            (len(rest), field, value, candidate)
            for field, value in islice(trials, MAX_TRIALS)
            if field not in changes and (candidate := _changed(fitting, {field: value}))
            for rest in [compare(shapes_of(candidate), found)]
        ]
        best = min(scored, key=lambda trial: trial[0], default=None)
        if best is None or best[0] >= len(left):
            break
        fitting, changes = best[3], {**changes, best[1]: best[2]}
        left = compare(shapes_of(fitting), found)
        if not left:
            flags = " ".join(f"--set {name}={str(value).lower()}" for name, value in changes.items())
            return f"It fits with {flags}."
    if suspects and found.keys() & shapes_of(config).keys():
        return f"Settings that look wrong: {', '.join(suspects)}. Give the checkpoint's own with --set key=value."
    return "No setting explains it: the checkpoint seems to be of another model."


def _own_hint(definition: Definition, config: ModelConfig, misfit: Misfit) -> str:
    """Return what the model's own file says about a misfit, "" where it says nothing."""
    own: Callable[[ModelConfig, Misfit], str] | None = getattr(definition, "misfit_hint", None)
    return own(config, misfit) if own else ""


def _list(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _rewrap(checkpoint: Checkpoint, wanted: Shapes) -> tuple[dict[str, "Tensor"], tuple[str, ...]]:
    for kept in range(len(checkpoint.prefixes), 0, -1):
        prefix = "".join(checkpoint.prefixes[-kept:])
        if all(name.startswith(prefix) for name in wanted):
            wrapping = checkpoint.wrapping[: len(checkpoint.wrapping) - kept]
            return {prefix + name: value for name, value in checkpoint.state.items()}, wrapping
    return dict(checkpoint.state), checkpoint.wrapping


def _shapes(module: "nn.Module") -> Shapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _shapes_by_config(definition: Definition) -> Callable[[ModelConfig], Shapes]:
    import torch

    known: dict[ModelConfig, Shapes] = {}

    def shapes_of(config: ModelConfig) -> Shapes:
        if config not in known:
            with torch.device("meta"):  # shapes only: no memory, no initialisation
                known[config] = _shapes(definition.build(config))
        return known[config]

    return shapes_of


def _changed(config: ModelConfig, values: Mapping[str, object]) -> ModelConfig | None:
    """Return the configuration with other values; None where they do not go with the rest."""
    try:
        return cast(ModelConfig, replace(cast(Any, config), **values))
    except ConfigurationError:
        return None


def _suspects(shapes_of: Callable[[ModelConfig], Shapes], config: ModelConfig, misfit: Misfit) -> dict[str, bool]:
    """Return the suspected fields, worst first, and whether a field changes how many tensors there are."""
    base = shapes_of(config)
    weight: dict[str, int] = {}
    counts: dict[str, bool] = {}
    for field in fields(config):
        if field.metadata == SHAPES_NO_WEIGHT:
            continue
        value = getattr(config, field.name)
        candidates = filter(None, (_changed(config, {field.name: other}) for other in _others(value)))
        for there in map(shapes_of, candidates if isinstance(value, tuple) else islice(candidates, 1)):
            moved = sum(_same_dimensions(base[n], there.get(n), model, file) for n, model, file in misfit.reshaped)
            moved += sum(n not in there for n in misfit.missing) + sum(n in there for n in misfit.unexpected)
            moved += bool(misfit.missing and not moved and set(there) != set(base))  # fewer layers in the file
            if moved > weight.get(field.name, 0):
                weight[field.name], counts[field.name] = moved, set(there) != set(base)
    return {name: counts[name] for name in sorted(weight, key=lambda name: -weight[name])}


def _others(value: object) -> tuple[object, ...]:
    """Return other values of a field, to see what it moves."""
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (2 * value, 3 * value) if value else (2, 3)
    if isinstance(value, tuple):
        return (tuple(2 * number for number in value), (*value, *value[-1:]), value[:-1])
    return ()


def _same_dimensions(
    base: tuple[int, ...], there: tuple[int, ...] | None, model: tuple[int, ...], file: tuple[int, ...]
) -> bool:
    """Return whether a change moved a dimension in which model and file differ."""
    if there is None or len({len(base), len(there), len(file)}) > 1:
        return True
    return any(b != t and m != f for b, t, m, f in zip(base, there, model, file, strict=True))


def _values(config: ModelConfig, field: str, found: Shapes, *, counts_modules: bool) -> Sequence[object]:
    current = getattr(config, field)
    if isinstance(current, bool):
        return [not current]
    if not isinstance(current, int):
        return []  # there are too many tuples to try
    if counts_modules:
        # Only what the names count, never a dimension: that many layers would take minutes to build.
        return sorted({int(part) + 1 for name in found for part in name.split(".") if part.isdecimal()} - {current})
    numbers = {dimension for shape in found.values() for dimension in shape}
    sizes = {value for f in fields(config) if type(value := getattr(config, f.name)) is int and value}
    derived = {a * b for a in numbers for b in sizes} | {a // b for a in numbers for b in sizes if a % b == 0}
    return sorted((numbers | derived) - {0, current}, key=lambda n: (n not in numbers, n))
