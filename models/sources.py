"""What a build starts from: `identify` says what MODEL is, in milliseconds and without torch; `open_source` opens it.

MODEL is a registered name, `module:factory`, or an .onnx, TorchScript or .pt2 file.  `SourceIdentity.digest` names the
content (configuration, weights, definition) for caches; a factory has none before it has run, and
`OpenedSource.digest` then covers its weights, its source files and its answers on fixed feeds.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tsexport.errors import FeedError, UsageError
from tsexport.models.checkpoints import check_file, read_checkpoint, torch_archive_kind
from tsexport.models.definition import Component, ModelConfig, Tensors, component_of, fp32_layers_of, task_of
from tsexport.models.factory import call_factory, declared_inputs, factory_digest, split_factory
from tsexport.models.flat import flatten, probe, to_tensors
from tsexport.models.loading import load_strictly
from tsexport.models.registry import ModelEntry, get_entry, is_registered
from tsexport.models.settings import configure, parse_scalar
from tsexport.models.source_files import source_files
from tsexport.types import Array, Feeds, ModelSpec, TensorSpec, file_sha256

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["registered", "factory", "onnx", "torchscript", "pt2"]
TORCHSCRIPT_SUFFIXES = (".pt", ".pth", ".ts", ".torchscript")
FILE_SUFFIXES = (".onnx", ".pt2", *TORCHSCRIPT_SUFFIXES)


@dataclass(frozen=True)
class SourceIdentity:
    """What MODEL is, read without running it.

    `name` is the bundle's `<model>`.  `config` is set for registered models, `settings` for factories, `path` for
    files.  `checkpoint` is the user's, or the reference one (`is_reference`), or None: then weights are initialised
    from `seed`.  The reference checkpoint belongs to one configuration, its entry's.  `component` is the part of a
    registered model that is built, None for all of it.  `digest` is None for a factory.
    """

    model: str
    kind: Kind
    name: str
    seed: int
    entry: ModelEntry | None = None
    config: ModelConfig | None = None
    component: Component | None = None
    settings: tuple[tuple[str, object], ...] = ()
    path: Path | None = None
    checkpoint: Path | None = None
    checkpoint_sha256: str | None = None
    is_reference: bool = False
    digest: str | None = None

    @property
    def is_untrained(self) -> bool:
        """Whether the weights come from the seed."""
        return self.kind == "registered" and self.checkpoint is None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs where they are known before opening, else ()."""
        return self.tensors.inputs if self.config else ()

    @property
    def tensors(self) -> Tensors:
        """What a registered model, or its component, takes and gives."""
        assert self.config is not None
        if self.component is not None:
            return self.component.tensors(self.config)
        return Tensors(self.config.inputs, self.config.outputs)


@dataclass(frozen=True)
class OpenedSource:
    """A model that answers: the `SourceModel` that every artifact is held against.

    `module` takes tensors in the order of `spec.inputs` and returns a tensor, or a tuple in that of `spec.outputs`; it
    is in eval mode, and None for an .onnx file, which is then `onnx_path`.  `notes` are for the user.
    """

    spec: ModelSpec
    digest: str
    notes: tuple[str, ...]
    checkpoint_sha256: str | None = None
    module: "nn.Module | None" = None
    onnx_path: Path | None = None
    _answer: Callable[[Feeds], dict[str, Array]] = field(default=lambda feeds: {}, repr=False)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return the named outputs for named arrays.

        Raises:
            FeedError: names are missing or unknown.
        """
        names = [spec.name for spec in self.spec.inputs]
        if set(feeds) != set(names):
            raise FeedError(f"{self.spec.name} was fed {sorted(feeds)}; it takes {names}")
        return self._answer(feeds)


def identify(
    model: str,
    *,
    checkpoint: Path | None = None,
    settings: Mapping[str, object] | None = None,
    seed: int = 0,
    component: str | None = None,
) -> SourceIdentity:
    """Return what MODEL, or a component of it, is.

    Raises:
        UsageError: there is no such model, component, factory or file, or an option does not apply to it.
        ConfigurationError: a setting is unknown or invalid.
        CheckpointError: the checkpoint is missing or no checkpoint.
    """
    settings = settings or {}
    if checkpoint is not None:
        check_file(checkpoint)
    if is_registered(model):
        return _identify_registered(get_entry(model), checkpoint, settings, seed, component)
    path = Path(model)
    if component is not None and (path.is_file() or split_factory(model)):
        raise UsageError(
            f"--component {component} does not apply to {model}: only registered models have components",
            next_step="Leave --component out.",
        )
    if path.suffix in FILE_SUFFIXES or path.is_file():
        _refuse_options(model, checkpoint, settings)
        return _identify_file(model, path, seed)
    if parts := split_factory(model):
        return SourceIdentity(
            model,
            "factory",
            parts[1],
            seed,
            settings=tuple((k, parse_scalar(v) if isinstance(v, str) else v) for k, v in settings.items()),
            checkpoint=checkpoint,
            checkpoint_sha256=file_sha256(checkpoint) if checkpoint else None,
        )
    raise UsageError(*_unknown(model))


def open_source(identity: SourceIdentity, inputs: tuple[TensorSpec, ...] = ()) -> OpenedSource:
    """Build or load the model, with its weights, ready to run.

    Args:
        identity: from `identify`.
        inputs: what the model takes, where neither a definition nor the model itself says so.

    Raises:
        UsageError: the model or its file cannot be used, or its inputs are not known.
        CheckpointError: the checkpoint does not fit the model.
    """
    if identity.kind == "registered":
        return _open_registered(identity)
    if identity.kind == "factory":
        return _open_factory(identity, inputs)
    if identity.kind == "onnx":
        return _open_onnx(identity, inputs)
    return _open_program(identity, inputs)


def _identify_registered(
    entry: ModelEntry, checkpoint: Path | None, settings: Mapping[str, object], seed: int, component_name: str | None
) -> SourceIdentity:
    definition = entry.definition()
    component = component_of(definition, component_name, model=entry.name) if component_name is not None else None
    config = configure(definition.Config, settings, model=entry.name)
    if component is not None:
        component.tensors(config)  # raises where the configuration has no such part
    is_reference = checkpoint is None and entry.checkpoint is not None and config == entry.checkpoint_config()
    used = entry.checkpoint if is_reference else checkpoint
    sha256 = file_sha256(used) if used else None
    content = {
        "name": entry.name,
        "config": asdict(config),
        "weights": sha256 or f"seed {seed}",
        "definition": [file_sha256(path) for path in source_files(definition)],
        **({"component": component.name} if component else {}),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return SourceIdentity(
        entry.name,
        "registered",
        entry.name,
        seed,
        entry=entry,
        config=config,
        component=component,
        checkpoint=used,
        checkpoint_sha256=sha256,
        is_reference=is_reference,
        digest=digest,
    )


def _identify_file(model: str, path: Path, seed: int) -> SourceIdentity:
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    if path.suffix == ".onnx":
        from tsexport.models.onnx_source import onnx_digest

        return SourceIdentity(model, "onnx", path.stem, seed, path=path, digest=onnx_digest(path))
    if path.suffix not in FILE_SUFFIXES:
        raise UsageError(
            f"{path} is no model file by its name; allowed are {', '.join(FILE_SUFFIXES)}",
            next_step="A checkpoint is passed with --checkpoint, a factory as file.py:factory.",
        )
    kind = torch_archive_kind(path)
    if path.suffix == ".pt2" and kind == "pt2":
        return SourceIdentity(model, "pt2", path.stem, seed, path=path, digest=file_sha256(path))
    if path.suffix in TORCHSCRIPT_SUFFIXES and kind == "torchscript":
        return SourceIdentity(model, "torchscript", path.stem, seed, path=path, digest=file_sha256(path))
    if kind == "state" or path.suffix in (".pt", ".pth"):
        raise UsageError(
            f"{path} is a checkpoint or damaged, not a TorchScript program: weights alone do not say what the model is",
            next_step=f"Name the model and pass the file: tsexport build MODEL --checkpoint {path} ...",
        )
    wanted = "torch.export" if path.suffix == ".pt2" else "TorchScript"
    raise UsageError(f"{path} is damaged, or no {wanted} program", next_step="Save or download it again.")


def _refuse_options(model: str, checkpoint: Path | None, settings: Mapping[str, object]) -> None:
    given = "--checkpoint" if checkpoint else "--set" if settings else ""
    if given:
        raise UsageError(
            f"{given} does not apply to {model}: the file already holds its weights and its sizes",
            next_step=f"Leave {given} out, or name a registered model or a factory.",
        )


def _unknown(model: str) -> tuple[str]:
    try:
        get_entry(model)
    except UsageError as error:
        return (str(error),)
    return (f"there is no model {model!r}",)


def _open_registered(identity: SourceIdentity) -> OpenedSource:
    import torch

    entry, config = identity.entry, identity.config
    assert entry is not None  # `identify` sets both for this kind
    assert config is not None
    definition = entry.definition()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(identity.seed)
        module = definition.build(config).eval().requires_grad_(False)
    notes = []
    if identity.checkpoint:
        checkpoint = read_checkpoint(identity.checkpoint)
        wrapping = load_strictly(module, checkpoint, model=entry.name, definition=definition, config=config)
        if identity.is_reference:
            notes.append(f"reference checkpoint that comes with tsexport: {identity.checkpoint.name}")
        notes += _unwrapped(wrapping)
    else:
        notes.append(f"weights initialised from seed {identity.seed}: untrained, accuracy means nothing")
        if entry.checkpoint_size is not None:
            notes.append(f"a trained checkpoint comes with tsexport: --set size={entry.checkpoint_size}")
    component = identity.component
    if component is not None:
        module = component.take(module)
        notes.append(f"component {component.name} of {entry.name}: {component.summary}")
    caveats = (*entry.caveats, *(["untrained: accuracy means nothing"] if identity.is_untrained else []))
    spec = ModelSpec(
        name=entry.name,
        family=entry.family,
        task="unknown" if component else task_of(config, entry.task),  # a part predicts nothing that has labels
        inputs=identity.tensors.inputs,
        outputs=identity.tensors.outputs,
        component=component.name if component else None,
        config=asdict(config),
        parameters=_count(module),
        source=entry.source,
        caveats=caveats,
        fp32_layers=fp32_layers_of(definition),
    )
    assert identity.digest is not None
    return _from_module(spec, module, identity.digest, tuple(notes), identity.checkpoint_sha256)


def _open_factory(identity: SourceIdentity, inputs: tuple[TensorSpec, ...]) -> OpenedSource:
    parts = split_factory(identity.model)
    assert parts is not None
    module = call_factory(*parts, dict(identity.settings), identity.seed)
    notes: list[str] = []
    if identity.checkpoint:
        notes += _unwrapped(load_strictly(module, read_checkpoint(identity.checkpoint), model=identity.model))
    else:
        notes.append("no --checkpoint: the weights are those that the factory returned")
    known = _known_inputs(identity, declared_inputs(module) or inputs)
    probed = probe(module, known)
    spec = ModelSpec(
        name=identity.name,
        family="custom",
        task="unknown",
        inputs=known,
        outputs=probed.outputs,
        config=dict(identity.settings),
        parameters=_count(module),
        source=":".join((Path(parts[0]).name, parts[1])),  # a bundle holds no path
    )
    digest = factory_digest(parts[0], module, probed.answers)
    return _from_module(spec, probed.module, digest, tuple(notes), identity.checkpoint_sha256)


def _open_program(identity: SourceIdentity, inputs: tuple[TensorSpec, ...]) -> OpenedSource:
    from tsexport.models.programs import load_pt2, load_torchscript

    assert identity.path is not None
    assert identity.digest is not None
    if identity.kind == "pt2":
        module, known = load_pt2(identity.path)
    else:
        module, known = load_torchscript(identity.path), _known_inputs(identity, inputs)
    probed = probe(module, known)
    spec = ModelSpec(
        name=identity.name,
        family="custom",
        task="unknown",
        inputs=known,
        outputs=probed.outputs,
        parameters=_count(module),
        source=identity.path.name,
    )
    return _from_module(spec, probed.module, identity.digest, (), None)


def _open_onnx(identity: SourceIdentity, inputs: tuple[TensorSpec, ...]) -> OpenedSource:
    from tsexport.models.onnx_source import open_onnx

    assert identity.path is not None
    assert identity.digest is not None
    opened = open_onnx(identity.path, inputs)
    spec = ModelSpec(
        name=identity.name,
        family="custom",
        task="unknown",
        inputs=opened.inputs,
        outputs=opened.outputs,
        parameters=opened.parameters,
        source=identity.path.name,
    )
    notes = (f"{identity.path.name} is ONNX opset {opened.opset}; its answers are those of ONNX Runtime, unoptimized",)
    return OpenedSource(spec, identity.digest, notes, onnx_path=identity.path, _answer=opened.run)


def _from_module(
    spec: ModelSpec, module: "nn.Module", digest: str, notes: tuple[str, ...], checkpoint_sha256: str | None
) -> OpenedSource:
    names = [output.name for output in spec.outputs]

    def answer(feeds: Feeds) -> dict[str, Array]:
        import torch

        with torch.inference_mode():
            values = flatten(module(*to_tensors(spec.inputs, feeds)))
        return {name: value.numpy() for name, (_, value) in zip(names, values, strict=True)}

    return OpenedSource(spec, digest, notes, checkpoint_sha256, module, _answer=answer)


def with_module(source: OpenedSource, module: "nn.Module", digest: str, notes: tuple[str, ...]) -> OpenedSource:
    """Return a source model of the same tensors that another module answers for, its weights counted anew.

    Args:
        source: the model it takes the place of.
        module: in eval mode.
        digest: of the new content.
        notes: beside those of the source.
    """
    spec = replace(source.spec, parameters=_count(module))
    return _from_module(spec, module, digest, (*source.notes, *notes), source.checkpoint_sha256)


def _known_inputs(identity: SourceIdentity, inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    if inputs:
        return inputs
    where = "set `tsexport_inputs` on the module, " if identity.kind == "factory" else ""
    raise UsageError(
        f"the inputs of {identity.model} are not known: it does not say what shapes it takes",
        next_step=f"To say so, {where}pass --input NAME=batch,DIM,... or --calibration with arrays of its inputs.",
    )


def _unwrapped(wrapping: tuple[str, ...]) -> list[str]:
    return [f"checkpoint unwrapped: {', '.join(wrapping)}"] if wrapping else []


def _count(module: "nn.Module") -> int:
    """Return the number of weights, buffers left out."""
    return sum(parameter.numel() for parameter in module.parameters())
