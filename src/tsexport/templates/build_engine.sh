#!/usr/bin/env bash
# Build a TensorRT engine of the bundle's graph on this device.  Needs bash and trtexec, nothing else.
if [ -z "${BASH_VERSION:-}" ]; then
    echo "error: this is no shell that the kit knows; run it with bash" >&2
    exit 2
fi
set -euo pipefail
unset CDPATH # with it, cd prints where it went
KIT_DEVICE=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source=kit.sh
source "$KIT_DEVICE/kit.sh"

usage() {
    cat <<END
usage: build_engine.sh [--output DIR] [--batch N] [--implicit]

  --output DIR  where the engine and the records go (default: ./results)
  --batch N     an engine for that batch size alone, instead of one for batches 1 to ${KIT_BATCHES[-1]}
  --implicit    the fp32 graph with the calibration cache, instead of the quantized graph (TensorRT 8 to 10, int8)

WORKSPACE_MIB sets the memory that the builder may use (default: $KIT_WORKSPACE_MIB), TRTEXEC the program.
END
}

output=results batch='' quantization=file
while [[ $# -gt 0 ]]; do
    case $1 in
        --output | --batch)
            [[ $# -gt 1 ]] || fail "$1 needs a value" "see build_engine.sh --help"
            if [[ $1 == --output ]]; then output=$2; else batch=$2; fi
            shift 2
            ;;
        --implicit)
            quantization=implicit
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) fail "unknown option $1" "see build_engine.sh --help" ;;
    esac
done
if [[ -n $batch ]] && ! batch_is_whole_number "$batch"; then
    fail "--batch is $batch; allowed are whole numbers from 1 on"
fi
if [[ -n $batch && -n $KIT_FROZEN_BATCH && $batch != "$KIT_FROZEN_BATCH" ]]; then
    fail "the graph has the batch $KIT_FROZEN_BATCH frozen in, and --batch asks for $batch"
fi
workspace=${WORKSPACE_MIB:-$KIT_WORKSPACE_MIB}
batch_is_whole_number "$workspace" || fail "WORKSPACE_MIB is $workspace; allowed are whole numbers from 1 on"

use_tensorrt
if [[ $quantization == implicit ]]; then
    [[ -n $KIT_IMPLICIT_GRAPH ]] || fail "this kit has no calibration cache, so --implicit cannot be used"
    ! since 11.0 || fail "TensorRT $TENSORRT has no implicit calibration any more" "leave --implicit out"
    graph=$KIT_IMPLICIT_GRAPH artifact=$KIT_IMPLICIT_ARTIFACT
else
    graph=$KIT_GRAPH artifact=$KIT_ARTIFACT
fi
if ! (cd -- "$KIT_ROOT" && sha256sum --check --quiet "$KIT_DEVICE/graph.sha256" >&2); then
    fail "a graph under $KIT_ROOT/artifacts is missing or is not the one that this kit is for" \
        "copy the bundle's device/ and artifacts/ again, side by side"
fi
use_output "$output"
[[ ! -e $OUTPUT/run.txt ]] || fail "$OUTPUT holds measured results already" "name another folder with --output"

flags=("--onnx=$KIT_ROOT/$graph" "--saveEngine=$OUTPUT/engine.plan" "--timingCacheFile=$OUTPUT/timing.cache")
if since 8.2; then flags+=(--profilingVerbosity=detailed "--exportLayerInfo=$OUTPUT/layers.json"); fi
if since 8.4; then flags+=("--memPoolSize=workspace:$workspace"); else flags+=("--workspace=$workspace"); fi
if since 8.6; then flags+=(--skipInference); else flags+=(--buildOnly); fi

# Before 9.0 precisions are allowed by flags, and layers whose type matters are held to it from 8.4 on.  From 9.0 on the
# network can be typed as the file is, which 11 always does.
if [[ $quantization == implicit ]]; then
    IFS= read -r header <"$KIT_DEVICE/calibration.cache"
    number=$((TENSORRT_MAJOR * (TENSORRT_MAJOR < 10 ? 1000 : 10000) + TENSORRT_MINOR * 100 + TENSORRT_PATCH))
    {
        printf 'TRT-%d-%s\n' "$number" "${header##*-}"
        tail -n +2 -- "$KIT_DEVICE/calibration.cache"
    } >"$OUTPUT/calibration.cache"
    flags+=(--int8 "--calib=$OUTPUT/calibration.cache")
elif [[ $KIT_PRECISION == fp32 ]]; then
    flags+=(--noTF32)
elif since 11.0; then
    :
elif since 9.0; then
    flags+=(--stronglyTyped)
else
    flags+=("--$KIT_PRECISION")
    if since 8.4 && [[ ${#KIT_FP32_LAYERS[@]} -gt 0 ]]; then
        printf -v layers '%s:fp32,' "${KIT_FP32_LAYERS[@]}"
        flags+=(--precisionConstraints=obey "--layerPrecisions=${layers%,}" "--layerOutputTypes=${layers%,}")
    fi
fi

if [[ -n $KIT_FROZEN_BATCH ]]; then
    batches=$KIT_FROZEN_BATCH
elif [[ -n $batch ]]; then
    batches=$batch
    flags+=("--minShapes=$(shapes_at "$batch")" "--optShapes=$(shapes_at "$batch")" "--maxShapes=$(shapes_at "$batch")")
else
    batches=${KIT_BATCHES[*]}
    flags+=("--minShapes=$(shapes_at 1)" "--optShapes=$(shapes_at "$KIT_TUNED_BATCH")")
    flags+=("--maxShapes=$(shapes_at "${KIT_BATCHES[-1]}")")
fi

printf 'building an engine of %s with TensorRT %s; this takes minutes\n' "$artifact" "$TENSORRT"
rm -f -- "$OUTPUT/build.txt" "$OUTPUT/engine.plan"
SECONDS=0
run_trtexec "$OUTPUT/build.log" "${flags[@]}"
[[ -s $OUTPUT/engine.plan ]] || fail "trtexec ended well and wrote no engine" "what it said is in $OUTPUT/build.log"

record=$OUTPUT/build.txt.tmp
: >"$record"
put "$record" schema 1
put "$record" bundle "$KIT_BUNDLE"
put "$record" target "$KIT_TARGET"
put "$record" artifact "$artifact"
put "$record" precision "$KIT_PRECISION"
put "$record" quantization "$quantization"
put "$record" graph_sha256 "$(sha256_of "$KIT_ROOT/$graph")"
put "$record" tensorrt "$TENSORRT"
put "$record" tensorrt_source "$TENSORRT_SOURCE"
put "$record" engine_sha256 "$(sha256_of "$OUTPUT/engine.plan")"
put "$record" engine_bytes "$(wc -c <"$OUTPUT/engine.plan" | tr -d ' ')"
put "$record" build_seconds "$SECONDS"
put "$record" batches "$batches"
put "$record" cuda_device "$(logged "$OUTPUT/build.log" 'Selected Device')"
put "$record" compute_capability "$(logged "$OUTPUT/build.log" 'Compute Capability')"
mv -- "$record" "$OUTPUT/build.txt"
printf 'wrote %s; measure it with measure.sh\n' "$OUTPUT/engine.plan"
