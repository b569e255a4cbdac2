"""A user's own model as `module:factory`: import, call, and a content identity for what came out.

`module` is a dotted name, looked up in the working folder first, or a path that ends in .py.  The factory is called
with the settings as keyword arguments and returns an `nn.Module`, which may carry `tsexport_inputs`: a tuple of
`TensorSpec`, or a mapping {name: ("batch", 60, 16)} of float32 inputs, in the order of forward's arguments.

The working folder and the file's own stay on `sys.path`, at its end, since a module may import lazily when it runs.
"""

import ast
import hashlib
import importlib
import importlib.util
import pickle
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from tsexport.errors import UsageError, did_you_mean
from tsexport.models.checkpoints import refused_name
from tsexport.types import BATCH, Array, TensorSpec

if TYPE_CHECKING:
    from torch import nn

_imported: dict[Path, str] = {}
"""The user's source files as they were when first seen: Python imports a module once."""


def split_factory(model: str) -> tuple[str, str] | None:
    """Return ("module", "factory") for "module:factory", else None.

    Raises:
        UsageError: a colon with nothing usable before or after it.
    """
    module, colon, factory = model.rpartition(":")
    if not colon:
        return None
    if not module or not factory.isidentifier():
        raise UsageError(f"{model!r} is not of the form module:factory", next_step="Write for example mymodels:build.")
    return module, factory


def call_factory(module_name: str, factory_name: str, settings: Mapping[str, object], seed: int) -> "nn.Module":
    """Return what the factory returns, in eval mode and on the CPU; torch's random numbers start at `seed` inside it.

    Raises:
        UsageError: the module or the factory is missing, not callable or fails, or it returns something else.
    """
    import torch
    from torch import nn

    label = f"{module_name}:{factory_name}"
    with _folders_first(module_name), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = import_factory_module(module_name)
        factory = getattr(module, factory_name, None)
        if factory is None:
            names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise UsageError(
                f"{module_name} has no {factory_name!r}{did_you_mean(factory_name, names)}",
                next_step=f"{module.__file__} is what was imported.",
            )
        if not callable(factory):
            raise UsageError(f"{label} is a {type(factory).__name__}, not a function or class that makes a model")
        try:
            made = factory(**settings)
        except Exception as error:  # a user's code may raise anything
            raise UsageError(
                f"{label} failed: {_words(error)} ({_where(error)})",
                next_step="Settings are passed to it as keyword arguments.",
            ) from _cause(error)
    if not isinstance(made, nn.Module):
        raise UsageError(f"{label} returned a {type(made).__name__}; a torch.nn.Module is expected")
    return made.cpu().eval().requires_grad_(False)


def import_factory_module(name: str) -> ModuleType:
    """Import a dotted name or a .py file.

    Raises:
        UsageError: there is none, or importing it fails.
    """
    path = Path(name)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise UsageError(f"there is no file {name}")
    try:
        return _import_file(path) if is_file else importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not is_file and error.name and (name == error.name or name.startswith(error.name + ".")):
            raise UsageError(
                f"there is no module {name!r} in {Path.cwd()} or among the installed packages",
                next_step="Run from the folder that holds it, or name the file: path/to/module.py:factory.",
            ) from error
        raise UsageError(f"importing {name} failed: {error}", next_step="Install what it imports.") from error
    except Exception as error:  # a user's code may raise anything
        raise UsageError(f"importing {name} failed: {_words(error)} ({_where(error)})") from _cause(error)


def _words(error: Exception) -> str:
    """Return what an error of a user's code says; of a file that torch refuses what it holds, not torch's advice."""
    if not isinstance(error, pickle.UnpicklingError):
        return f"{type(error).__name__}: {error}"
    name = refused_name(error)
    held = "a damaged pickle" if name is None else f"code, which is not run: its pickle asks for {name}"
    return f"it loads a file that holds {held}; pass weights with --checkpoint"


def _cause(error: Exception) -> Exception | None:
    return None if isinstance(error, pickle.UnpicklingError) else error


def declared_inputs(module: "nn.Module") -> tuple[TensorSpec, ...]:
    """Return the module's `tsexport_inputs` as specs, or () where it has none.

    Raises:
        UsageError: the attribute has another form.
    """
    declared = getattr(module, "tsexport_inputs", ())
    if isinstance(declared, Mapping):
        declared = tuple(TensorSpec(str(name), "float32", tuple(shape)) for name, shape in declared.items())
    good = isinstance(declared, tuple | list) and all(
        isinstance(spec, TensorSpec) and spec.shape[:1] == (BATCH,) and all(isinstance(n, int) for n in spec.shape[1:])
        for spec in declared
    )
    if not good:
        raise UsageError(
            f"tsexport_inputs is {declared!r}",
            next_step=f'Give it as {{"x": ("{BATCH}", 60, 16)}} or as a tuple of tsexport.types.TensorSpec.',
        )
    return tuple(declared)


def factory_digest(module_name: str, module: "nn.Module", answers: tuple[Array, ...]) -> str:
    """Return a SHA-256 of the weights, of the user's source files, and of answers on fixed feeds.

    Raises:
        UsageError: a source file is no longer the one that this Python process imported.
    """
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().contiguous().numpy().tobytes())
    for path in sorted(user_sources(import_factory_module(module_name))):
        digest.update(f"{path.name} {_unchanged_digest(path)}\n".encode())
    for answer in answers:
        digest.update(answer.tobytes())
    return digest.hexdigest()


def _unchanged_digest(path: Path) -> str:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if _imported.setdefault(path, digest) != digest:
        raise UsageError(
            f"{path} has changed since this Python process imported it, and what runs is still the old code",
            next_step="Build in a fresh process.",
        )
    return digest


def imported_sources() -> Mapping[Path, str]:
    """Return the SHA-256 of every source file of the factories that this process has run, by absolute path."""
    return dict(_imported)


def user_sources(module: ModuleType) -> set[Path]:
    """Return the module's file and those of all modules it imports that are neither installed nor Python's own."""
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        path = Path(getattr(current, "__file__", None) or "").resolve()
        if path.suffix != ".py" or path in found or _is_installed(path):
            continue
        found.add(path)
        package = current.__spec__.parent if current.__spec__ else ""
        for name in _imported_names(ast.parse(path.read_text(encoding="utf-8")), package or ""):
            if name in sys.modules:
                waiting.append(sys.modules[name])
    return found


def _imported_names(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:  # importing a.b.c runs a and a.b, too
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _is_installed(path: Path) -> bool:
    # Packages of another environment, which a .pth file or PYTHONPATH lends to this one, are installed ones too.
    if {"site-packages", "dist-packages"} & {*path.parts}:
        return True
    paths = sysconfig.get_paths()
    known = {*site.getsitepackages(), site.getusersitepackages()}
    known |= {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    package = Path(__file__).resolve().parent
    return path.is_relative_to(package) or any(
        path.is_relative_to(Path(p).resolve()) for p in known if Path(p).is_dir()
    )


def _import_file(path: Path) -> ModuleType:
    resolved = path.resolve()
    loaded = sys.modules.get(path.stem)
    if loaded is not None and Path(getattr(loaded, "__file__", None) or "").resolve() == resolved:
        return loaded
    # The stem may be another module's name; then the file gets a name of its own.
    name = (
        path.stem if loaded is None else f"tsexport_factory_{hashlib.sha256(str(resolved).encode()).hexdigest()[:12]}"
    )
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported as a module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _folders_first(module_name: str) -> Iterator[None]:
    """Look in the user's folders first while importing, and last from then on, so that they shadow nothing later."""
    path = Path(module_name)
    folders = [str(path.resolve().parent)] if path.suffix == ".py" else []
    folders.append(str(Path.cwd()))
    sys.path[:0] = folders
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for folder in folders:
            sys.path.remove(folder)
        sys.path.extend(folder for folder in folders if folder not in sys.path)


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno}" if trace else "no traceback"
