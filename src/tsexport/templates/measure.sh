#!/usr/bin/env bash
# Measure the engine that build_engine.sh built, on this device.  Needs bash and trtexec, nothing else.
if [ -z "${BASH_VERSION:-}" ]; then
    echo "error: this is no shell that the kit knows; run it with bash" >&2
    exit 2
fi
set -euo pipefail
unset CDPATH # with it, cd prints where it went
KIT_DEVICE=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source=kit.sh
source "$KIT_DEVICE/kit.sh"
readonly WARM_UP_MS=1000 DURATION_S=10 ITERATIONS=100

usage() {
    cat <<END
usage: measure.sh [--output DIR] [--with-transfers]

  --output DIR      the folder that build_engine.sh wrote to (default: ./results)
  --with-transfers  count the copies to and from the device too where trtexec leaves them out (TensorRT 11 and later)

Give the folder to \`tsexport attach BUNDLE DIR\` afterwards; the engine need not go with it.
END
}

output=results with_transfers=no
while [[ $# -gt 0 ]]; do
    case $1 in
        --output)
            [[ $# -gt 1 ]] || fail "$1 needs a value" "see measure.sh --help"
            output=$2
            shift 2
            ;;
        --with-transfers)
            with_transfers=yes
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) fail "unknown option $1" "see measure.sh --help" ;;
    esac
done

[[ -s $output/build.txt && -s $output/engine.plan ]] ||
    fail "$output holds no engine of build_engine.sh" "run build_engine.sh first, with the same --output"
use_tensorrt
use_output "$output"
built=$(value_of "$OUTPUT/build.txt" tensorrt)
[[ $built == "$TENSORRT" ]] ||
    fail "the engine was built with TensorRT $built, and here is $TENSORRT" "build it again with build_engine.sh"
[[ $(sha256_of "$OUTPUT/engine.plan") == "$(value_of "$OUTPUT/build.txt" engine_sha256)" ]] ||
    fail "$OUTPUT/engine.plan is not the engine that build_engine.sh wrote" "build it again with build_engine.sh"

# What the device says of itself: text that is kept as it is, and one line of it in the record.
keep() {
    local file=$1
    shift
    if command -v "$1" >/dev/null 2>&1; then
        "$@" >"$OUTPUT/$file" 2>&1 || printf '(%s ended with an error)\n' "$1" >>"$OUTPUT/$file"
    fi
}
board='' gpu=0
# KIT_MODEL_FILE is for tests of this script, which run on no such board.
if [[ -r ${KIT_MODEL_FILE:-/proc/device-tree/model} ]]; then
    board=$(tr -d '\000' <"${KIT_MODEL_FILE:-/proc/device-tree/model}")
fi
# The GPU that trtexec takes, which on a server need not be the first: as it names it (from 9.0 on), or as CUDA is told.
if [[ -z $board ]]; then
    gpu=$(logged "$OUTPUT/build.log" 'Selected Device UUID')
    gpu=${gpu:-${CUDA_VISIBLE_DEVICES:-0}}
    gpu=${gpu%%,*}
fi

rm -f -- "$OUTPUT/run.txt" "$OUTPUT/SHA256SUMS" "$OUTPUT"/times-b*.json "$OUTPUT"/profile-b*.json
rm -f -- "$OUTPUT/nvpmodel.txt" "$OUTPUT/jetson_clocks.txt" "$OUTPUT/nvidia-smi.txt"
keep nvpmodel.txt nvpmodel -q
keep jetson_clocks.txt jetson_clocks --show
# Not all of -q: it holds the GPU's serial number.
keep nvidia-smi.txt nvidia-smi -q "--id=$gpu" -d CLOCK,POWER,PERFORMANCE

# Print one fact of nvidia-smi, nothing where there is none.
query() {
    command -v nvidia-smi >/dev/null 2>&1 || return 0
    nvidia-smi --query-gpu="$1" --format=csv,noheader "--id=$gpu" 2>/dev/null || true
}
power_mode=''
if [[ -s $OUTPUT/nvpmodel.txt ]]; then
    power_mode=$(logged "$OUTPUT/nvpmodel.txt" 'NV Power Mode')
else
    power_mode=$(query power.limit)
    power_mode=${power_mode:+power limit $power_mode}
fi

# trtexec of TensorRT 11 leaves the copies out, spins and replays a CUDA graph by default; before, it does none of these.
if since 11.0; then
    transfers=excluded cuda_graph=yes spin_wait=yes
else
    transfers=included cuda_graph=no spin_wait=no
fi
extra=()
if [[ $with_transfers == yes ]] && since 11.0; then
    transfers=included
    extra+=(--includeDataTransfers)
fi

read -r -a batches <<<"$(value_of "$OUTPUT/build.txt" batches)"
for batch in "${batches[@]}"; do
    flags=("--loadEngine=$OUTPUT/engine.plan" "${extra[@]}")
    flags+=("--warmUp=$WARM_UP_MS" "--duration=$DURATION_S" "--iterations=$ITERATIONS")
    [[ -n $KIT_FROZEN_BATCH ]] || flags+=("--shapes=$(shapes_at "$batch")")
    printf 'measuring batch %s\n' "$batch"
    run_trtexec "$OUTPUT/measure-b$batch.log" "${flags[@]}" "--exportTimes=$OUTPUT/times-b$batch.json"
    [[ -s $OUTPUT/times-b$batch.json ]] ||
        fail "trtexec ended well and exported no times" "what it said is in $OUTPUT/measure-b$batch.log"
    measured=$(logged "$OUTPUT/measure-b$batch.log" 'Selected Device')
    [[ $measured == "$(value_of "$OUTPUT/build.txt" cuda_device)" ]] ||
        fail "the engine was built on another GPU than this $measured" "build it again with build_engine.sh"
    # A run of its own: the profiler slows the network down.
    run_trtexec "$OUTPUT/profile-b$batch.log" "${flags[@]}" "--exportProfile=$OUTPUT/profile-b$batch.json"
done

record=$OUTPUT/run.txt.tmp
cp -- "$OUTPUT/build.txt" "$record"
put "$record" board "$board"
put "$record" power_mode "$power_mode"
put "$record" driver "$(query driver_version)"
put "$record" mig "$(query mig.mode.current)"
put "$record" kernel "$(uname -r)"
put "$record" transfers "$transfers"
put "$record" cuda_graph "$cuda_graph"
put "$record" spin_wait "$spin_wait"
put "$record" warm_up_ms "$WARM_UP_MS"
put "$record" duration_s "$DURATION_S"
put "$record" iterations "$ITERATIONS"
mv -- "$record" "$OUTPUT/run.txt"
(
    cd -- "$OUTPUT"
    shopt -s nullglob
    sha256sum -- *.txt *.log layers*.json times-b*.json profile-b*.json >.SHA256SUMS.tmp
    mv -- .SHA256SUMS.tmp SHA256SUMS
)
printf 'wrote %s; bring it back with: tsexport attach %s %q\n' "$OUTPUT" "$KIT_BUNDLE" "$OUTPUT"
