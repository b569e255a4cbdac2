"""A stand-in for trtexec: it builds nothing and runs nothing.

It checks that every flag is one that trtexec of its pretended version knows, and writes files of the form that this
version writes.  The flags and the forms were read from NVIDIA's sources (https://github.com/NVIDIA/TensorRT,
samples/common/sampleOptions.cpp and sampleReporting.cpp of the branches release/8.0, 8.2, 8.4, 8.5, 8.6, 10.3 and
11.0).  Its version, device and latency come from the environment: STAND_IN_VERSION, STAND_IN_DEVICE, STAND_IN_UUID,
STAND_IN_CAPABILITY, STAND_IN_MS; STAND_IN_FAIL names a flag that it fails at, and STAND_IN_BANNER is the first line
without a version.
"""

import json
import os
import sys
from pathlib import Path

COMMON = {
    "--help", "--onnx", "--saveEngine", "--loadEngine", "--timingCacheFile", "--profilingVerbosity",
    "--exportLayerInfo", "--exportTimes", "--exportProfile", "--minShapes", "--optShapes", "--maxShapes", "--shapes",
    "--warmUp", "--duration", "--iterations", "--noTF32",
}  # fmt: skip
PRECISIONS = {"--fp16", "--int8", "--calib", "--precisionConstraints"}
BY_LAYER = PRECISIONS | {"--layerPrecisions", "--layerOutputTypes"}
FLAGS = {
    (8, 0): COMMON - {"--profilingVerbosity", "--exportLayerInfo"}
    | {"--fp16", "--int8", "--calib", "--workspace", "--buildOnly"},
    (8, 2): COMMON | PRECISIONS | {"--workspace", "--buildOnly"},
    (8, 4): COMMON | BY_LAYER | {"--memPoolSize", "--buildOnly"},
    (8, 5): COMMON | BY_LAYER | {"--memPoolSize", "--buildOnly"},
    (8, 6): COMMON | BY_LAYER | {"--memPoolSize", "--skipInference"},
    (10, 3): COMMON | BY_LAYER | {"--memPoolSize", "--skipInference", "--bf16", "--stronglyTyped"},
    (11, 0): COMMON | {"--memPoolSize", "--skipInference", "--includeDataTransfers"},
}
RUNS, WARM_UPS = 120, 4


def times_text(version, milliseconds, *, transfers, warm_up_ms, duration_s):
    """Return what --exportTimes writes: one object a line, and six digits as C++ prints a float.

    There are pauses between the runs, so that few of them last as long as was asked for.
    """
    copy = 0.05 * milliseconds if transfers else 0.0
    begins = [warm_up_ms + index * max(milliseconds, 1000 * duration_s / RUNS) for index in range(RUNS)]
    if version < (8, 5):
        begins = [index * milliseconds for index in range(WARM_UPS)] + begins  # these keep the warm-up
    lines = []
    for index, begin in enumerate(begins):
        compute = milliseconds * (1 + 0.01 * (index % 10))
        if version < (8, 5) and index < WARM_UPS:
            compute *= 50  # a slow start, which must not be counted
        ends = {"Enq": begin + 0.01, "H2d": begin + copy, "Compute": begin + copy + compute}
        ends["D2h"] = ends["Compute"] + copy
        values = {
            "startEnqMs": begin, "endEnqMs": ends["Enq"], "startH2dMs": begin, "endH2dMs": ends["H2d"],
            "startComputeMs": ends["H2d"], "endComputeMs": ends["Compute"], "startD2hMs": ends["Compute"],
            "endD2hMs": ends["D2h"], "h2dMs": copy, "computeMs": compute, "d2hMs": copy,
            "latencyMs": copy + compute + copy,
        }  # fmt: skip
        if version < (8, 4):
            values["endToEndMs"] = ends["D2h"] - begin
        inside = ", ".join(f'"{key}" : {value:.6g}' for key, value in values.items())
        lines.append(f"{', ' if lines else '  '}{{ {inside} }}\n")
    return "[\n" + "".join(lines) + "]\n"


def main(arguments):
    version = tuple(map(int, os.environ["STAND_IN_VERSION"].split(".")))
    major, minor, patch = version
    number = major * (1000 if major < 10 else 10_000) + minor * 100 + patch
    banner = os.environ.get("STAND_IN_BANNER", f"TensorRT.trtexec [TensorRT v{number}]")
    print(f"&&&& RUNNING {banner} # trtexec {' '.join(arguments)}")
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if "--help" in given:
        return 0
    known = FLAGS[version[:2]]
    unknown = [flag for flag in given if flag not in known]
    if unknown or os.environ.get("STAND_IN_FAIL") in given:
        print(f"[E] Unknown option: {' '.join(unknown)}")
        return 1
    print("[I] === Device Information ===")
    print(f"[I] Selected Device: {os.environ['STAND_IN_DEVICE']}")
    if version >= (9, 0, 0):
        print(f"[I] Selected Device UUID: {os.environ.get('STAND_IN_UUID', 'GPU-1')}")
    print(f"[I] Compute Capability: {os.environ['STAND_IN_CAPABILITY']}")
    if "--saveEngine" in given:
        assert Path(given["--onnx"]).is_file()
        assert ("--buildOnly" in given) != ("--skipInference" in given)
        if "--calib" in given:
            assert Path(given["--calib"]).read_text().startswith(f"TRT-{number}-EntropyCalibration2\n")
        Path(given["--saveEngine"]).write_text(f"a stand-in's engine\n{json.dumps(arguments)}\n")
        if "--exportLayerInfo" in given:
            Path(given["--exportLayerInfo"]).write_text('{"Layers": []}\n')
        return 0
    assert Path(given["--loadEngine"]).is_file()
    if "--exportProfile" in given:
        Path(given["--exportProfile"]).write_text('[\n  { "count" : 1 }\n]\n')
    if "--exportTimes" in given:
        transfers = major < 11 or "--includeDataTransfers" in given
        text = times_text(
            version,
            float(os.environ["STAND_IN_MS"]),
            transfers=transfers,
            warm_up_ms=int(given["--warmUp"]),
            duration_s=int(given["--duration"]),
        )
        Path(given["--exportTimes"]).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
