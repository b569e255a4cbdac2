"""tsexport: from a trained time-series or weather checkpoint to a measured, verified bundle.

    bundle = tsexport.build("patchtst-cpu", "cpu4-int8", output="dist")
    with tsexport.load("dist/patchtst-cpu-cpu4-int8") as session:
        answer = session.run({"features": array})

Everything here is imported when it is first used: `import tsexport` alone costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "Bundle": "tsexport.bundles.bundle",
    "Session": "tsexport.types",
    "TensorSpec": "tsexport.types",
    "TsexportError": "tsexport.errors",
    "attach": "tsexport.api",
    "benchmark": "tsexport.api",
    "build": "tsexport.api",
    "build_plan": "tsexport.plans.running",
    "check": "tsexport.api",
    "compare": "tsexport.api",
    "diff": "tsexport.api",
    "estimate": "tsexport.api",
    "history": "tsexport.api",
    "list_models": "tsexport.listing",
    "list_runtimes": "tsexport.listing",
    "list_targets": "tsexport.listing",
    "load": "tsexport.api",
    "report": "tsexport.api",
    "sign": "tsexport.api",
    "verify": "tsexport.api",
}

if TYPE_CHECKING:
    from tsexport.api import (
        attach,
        benchmark,
        build,
        check,
        compare,
        diff,
        estimate,
        history,
        load,
        report,
        sign,
        verify,
    )
    from tsexport.bundles.bundle import Bundle
    from tsexport.errors import TsexportError
    from tsexport.listing import list_models, list_runtimes, list_targets
    from tsexport.plans.running import build_plan
    from tsexport.types import Session, TensorSpec

__all__ = [
    "Bundle",
    "Session",
    "TensorSpec",
    "TsexportError",
    "__version__",
    "attach",
    "benchmark",
    "build",
    "build_plan",
    "check",
    "compare",
    "diff",
    "estimate",
    "history",
    "list_models",
    "list_runtimes",
    "list_targets",
    "load",
    "report",
    "sign",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tsexport' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
