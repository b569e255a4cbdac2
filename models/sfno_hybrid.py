"""sfno-hybrid: the next hour's weather, 13 channels on 256x256, by a spectral U-Net with a transformer at its bottom.

Three levels, 256x256, 64x64 and 16x16 points with 256, 512 and 1024 channels, two spectral blocks each; the network,
its source and the faults of the published one that are not here stand in `tsexport.models.sfno`.  The document claims
487,523,597 parameters (500 M elsewhere; "125M (INT8)" divides that number by 4, where int8 shrinks only the bytes).

Limits: about 2 GB in fp32, so its ONNX file keeps its weights in a second file; some 600 GFLOP a step.
"""

from tsexport.models.sfno import NARROWING, Config, build

__all__ = ["NARROWING", "Config", "build"]
