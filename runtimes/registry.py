"""The table of runtimes, and loading an artifact on one of them.

To add one: a module with a session class and a row in `RUNTIMES`.  Third parties add theirs through the entry point
group `tsexport.runtimes`: an object that implements `tsexport.types.Runtime`, whose module must import without the
runtime's own package, since `check()` is asked for every listing.  A built-in name cannot be replaced.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from tsexport.errors import BundleError, MissingDependencyError, UsageError, did_you_mean
from tsexport.runtimes.cuda_build import cuda_obstacle
from tsexport.runtimes.tensorrt_plan import refusal_of_version
from tsexport.types import Artifact, Format, Runtime, RuntimeStatus, Session

ENTRY_POINT_GROUP = "tsexport.runtimes"


@dataclass(frozen=True)
class BuiltInRuntime:
    """One row of the table.  Nothing is imported before `load`.

    `package` is the name that pip and import share; `session` is "module:class", the class taking (artifact, threads);
    `pip_command` installs the least that makes the runtime work.  `also` are modules that it needs besides.
    `obstacle` says why the installed version cannot work on this machine, "" where it can; it imports nothing heavy.
    """

    name: str
    formats: tuple[Format, ...]
    package: str
    session: str
    pip_command: str
    also: tuple[str, ...] = ()
    obstacle: Callable[[str], str] | None = None

    def check(self) -> RuntimeStatus:
        """Return whether the runtime can be used and its package's version, without importing it."""
        reason = self._reason()
        return RuntimeStatus(
            name=self.name,
            available=not reason,
            version=_installed_version(self.package) if _is_installed(self.package) else None,
            formats=self.formats,
            pip_command=self.pip_command,
            reason=reason,
        )

    def load(self, artifact: Artifact, *, threads: int) -> Session:
        """Return a session on an artifact.  Raises what `load` below raises."""
        if reason := self._reason():
            raise self._missing(reason)
        module, _, attribute = self.session.partition(":")
        try:
            imported = importlib.import_module(module)
        except ImportError as error:  # installed, and broken: a missing system library, a half-removed package
            raise self._missing(f"the package {self.package} cannot be imported: {error}") from error
        session: Session = getattr(imported, attribute)(artifact, threads)
        return session

    def _reason(self) -> str:
        """Return why the runtime cannot be used here, "" where it can."""
        for module in (self.package, *self.also):
            if not _is_installed(module):
                return f"the package {module} is not installed"
        return self.obstacle(_installed_version(self.package) or "") if self.obstacle is not None else ""

    def _missing(self, reason: str) -> MissingDependencyError:
        return MissingDependencyError(
            f"the runtime {self.name} needs {self.package}: {reason}", next_step=self.pip_command
        )


RUNTIMES: tuple[BuiltInRuntime, ...] = (
    BuiltInRuntime(
        name="torchscript",
        formats=("torchscript",),
        package="torch",
        session="tsexport.runtimes.torchscript:TorchScriptSession",
        pip_command='pip install "torch==2.13.0"',
    ),
    BuiltInRuntime(
        name="onnxruntime",
        formats=("onnx",),
        package="onnxruntime",
        session="tsexport.runtimes.onnxruntime:OnnxRuntimeSession",
        pip_command='pip install "onnxruntime~=1.31.0"',
    ),
    BuiltInRuntime(
        name="openvino",
        formats=("openvino", "onnx"),
        package="openvino",
        session="tsexport.runtimes.openvino:OpenVinoSession",
        pip_command='pip install "tsexport[openvino]"',
    ),
    BuiltInRuntime(
        name="tract",
        formats=("onnx",),
        package="tract",
        session="tsexport.runtimes.tract:TractSession",
        pip_command='pip install "tsexport[tract]"',
    ),
)

TORCH_CUDA = "torch-cuda"
GPU_RUNTIMES: tuple[BuiltInRuntime, ...] = (
    BuiltInRuntime(
        name=TORCH_CUDA,
        formats=("torchscript",),
        package="torch",
        session="tsexport.runtimes.torch_cuda:TorchCudaSession",
        pip_command='pip install "torch==2.13.0" --index-url https://download.pytorch.org/whl/cu130',
        obstacle=lambda version: cuda_obstacle(),
    ),
    BuiltInRuntime(
        name="tensorrt",
        formats=("onnx",),
        package="tensorrt",
        session="tsexport.runtimes.tensorrt:TensorRtSession",
        pip_command='pip install "tsexport[tensorrt]"',
        also=("cuda.bindings",),
        obstacle=refusal_of_version,
    ),
)
"""Those that need a GPU.  No bundle counts on them; whoever has one may name them."""


def runtime_names() -> tuple[str, ...]:
    """Return every runtime's name: the built-in ones, then those of entry points."""
    built_in = tuple(row.name for row in (*RUNTIMES, *GPU_RUNTIMES))
    return built_in + tuple(name for name in _entry_points() if name not in built_in)


def get_runtime(name: str) -> Runtime:
    """Return the runtime of a name, whether or not its package is installed.

    Raises:
        UsageError: an unknown name, or a third party's runtime that cannot be loaded.
    """
    for row in (*RUNTIMES, *GPU_RUNTIMES):
        if row.name == name:
            return row
    points = _entry_points()
    if name not in points:
        names = runtime_names()
        raise UsageError(
            f"unknown runtime {name!r}{did_you_mean(name, names)}; runtimes are {', '.join(names)}",
            next_step="run `tsexport runtimes` to see which are installed",
        )
    try:
        found = points[name].load()
        missing = [part for part in ("name", "formats", "check", "load") if not hasattr(found, part)]
    except Exception as error:  # a third party's module may raise anything when it is imported
        raise UsageError(_broken(points[name], f"{type(error).__name__}: {error}")) from error
    if missing:
        raise UsageError(_broken(points[name], f"it has no {', '.join(missing)}"))
    runtime: Runtime = found
    return runtime


def list_statuses() -> tuple[RuntimeStatus, ...]:
    """Return every runtime's status; no built-in runtime's package is imported for it."""
    return tuple(_status(name) for name in runtime_names())


def bundle_statuses() -> tuple[RuntimeStatus, ...]:
    """Return the status of the runtimes that a build compares and measures its artifacts on: all without a GPU."""
    needs_gpu = {row.name for row in GPU_RUNTIMES}
    return tuple(status for status in list_statuses() if status.name not in needs_gpu)


def runtimes_for(artifact_format: Format) -> tuple[RuntimeStatus, ...]:
    """Return the status of every runtime that loads a format."""
    return tuple(status for status in list_statuses() if artifact_format in status.formats)


def load(artifact: Artifact, runtime: str, threads: int) -> Session:
    """Return a session on an artifact.

    Args:
        runtime: a name of `runtime_names()`.
        threads: threads that one inference uses.  torch's is set for the whole process; tract always uses one.

    Raises:
        UsageError: an unknown runtime, threads below 1, a format that the runtime does not load, or a file that it
            refuses.
        ConfigurationError: an option of the artifact that is unknown or contradicts it.
        MissingDependencyError: the runtime's package is not installed; names the pip command.
        BundleError: a file of the artifact does not exist.
    """
    chosen = get_runtime(runtime)
    if threads < 1:
        raise UsageError(f"threads is {threads}; it must be 1 or more")
    if artifact.format not in chosen.formats:
        able = [f"{s.name}{'' if s.available else ' (not installed)'}" for s in runtimes_for(artifact.format)]
        raise UsageError(
            f"the runtime {runtime} loads {', '.join(chosen.formats)}; artifact {artifact.name} is {artifact.format}",
            next_step=f"use {' or '.join(able)}" if able else "",
        )
    for path in (artifact.path, *artifact.files):
        if not path.is_file():
            raise BundleError(
                f"the file {path} of artifact {artifact.name} does not exist",
                next_step="copy or build the bundle again",
            )
    return chosen.load(artifact, threads=threads)


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}


def _status(name: str) -> RuntimeStatus:
    try:
        return get_runtime(name).check()
    except UsageError as error:  # one broken plug-in must not hide the others
        distribution = _entry_points()[name].dist
        command = f"pip install --force-reinstall {distribution.name}" if distribution else ""
        return RuntimeStatus(name, False, None, (), command, error.message)


def _broken(point: importlib.metadata.EntryPoint, reason: str) -> str:
    origin = point.dist.name if point.dist else "an unnamed distribution"
    return f"the runtime {point.name} of {origin} cannot be used: {reason}"


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # an import hook refuses it, or something half-imported stands under its name
        return False


def _installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
