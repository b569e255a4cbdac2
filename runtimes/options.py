"""Which runtime an artifact's option belongs to, so that a file for two runtimes can carry settings for each.

ONNX Runtime ignores a session entry it does not know, so a misspelt one would silently change what is computed: only
those listed here are accepted.  OpenVINO refuses unknown properties itself; its names are upper case.
"""

import re

from tsexport.errors import ConfigurationError, did_you_mean
from tsexport.types import Artifact

GRAPH_OPTIMIZATION_LEVEL = "graph_optimization_level"
FIX_BATCH = "fix_batch"

ONNXRUNTIME_OPTIONS: tuple[str, ...] = (
    GRAPH_OPTIMIZATION_LEVEL,  # disabled, basic, extended, all
    FIX_BATCH,  # ours: "no" for a graph that computes no shapes, which one session serves at every batch
    "session.x64quantprecision",  # 1: no saturation of U8S8 without VNNI, slower
    "session.disable_quant_qdq",  # 1: run Q/DQ as written, to check its numerics
    "session.disable_double_qdq_remover",
    "session.enable_quant_qdq_cleanup",
    "session.qdqisint8allowed",
    "session.disable_prepacking",
    "session.set_denormal_as_zero",
    "session.intra_op.allow_spinning",
    "session.force_spinning_stop",
    "session.dynamic_block_base",
    "optimization.disable_specified_optimizers",
    "optimization.enable_gelu_approximation",
    "mlas.enable_gemm_fastmath_arm64_bfloat16",
)
TENSORRT_BATCHES = "tensorrt.batches"  # ours: "1,8", what an engine's optimization profile covers, tuned for the first
DEFAULT_TENSORRT_BATCHES = (1, 8)
_OPENVINO_NAME = re.compile(r"[A-Z][A-Z0-9_]*")


def own_options(artifact: Artifact, runtime: str) -> dict[str, str]:
    """Return the artifact's options that belong to a runtime.

    Raises:
        ConfigurationError: an option that belongs to no runtime.
    """
    return {key: value for key, value in artifact.options if _owner(key, artifact) == runtime}


def _owner(key: str, artifact: Artifact) -> str:
    if key in ONNXRUNTIME_OPTIONS:
        return "onnxruntime"
    if key == TENSORRT_BATCHES:
        return "tensorrt"
    if _OPENVINO_NAME.fullmatch(key):
        return "openvino"
    raise ConfigurationError(
        f"artifact {artifact.name} has the unknown runtime option {key!r}"
        f"{did_you_mean(key, (*ONNXRUNTIME_OPTIONS, TENSORRT_BATCHES))}; ONNX Runtime's are "
        f"{', '.join(ONNXRUNTIME_OPTIONS)}, TensorRT's is {TENSORRT_BATCHES}, and OpenVINO's are its property names in "
        "upper case"
    )


def tensorrt_batches(artifact: Artifact) -> tuple[int, ...]:
    """Return the batches that a TensorRT engine of the artifact is built for, the most important first.

    Raises:
        ConfigurationError: a list that holds something else than whole numbers from 1 on.
    """
    given = own_options(artifact, "tensorrt").get(TENSORRT_BATCHES)
    if given is None:
        return DEFAULT_TENSORRT_BATCHES
    if not re.fullmatch(r"[1-9][0-9]{0,8}(,[1-9][0-9]{0,8})*", given):
        raise ConfigurationError(
            f"artifact {artifact.name} has the option {TENSORRT_BATCHES}={given!r}; allowed are whole numbers from 1 "
            "on, with commas between them, such as 1,8"
        )
    return tuple(map(int, given.split(",")))
