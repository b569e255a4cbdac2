# shellcheck shell=bash
# What build_engine.sh and measure.sh share.  Needs bash 4.4 or later and coreutils.

# Sets KIT_*: what this kit is for.
# shellcheck source=settings.sh
source "$KIT_DEVICE/settings.sh"
KIT_ROOT=$(dirname "$KIT_DEVICE")

# So that trtexec counts GPUs as nvidia-smi does.
export CUDA_DEVICE_ORDER=PCI_BUS_ID

# fail MESSAGE [NEXT_STEP]
fail() {
    printf 'error: %s\n' "$1" >&2
    if [[ $# -gt 1 ]]; then
        printf '%s\n' "$2" >&2
    fi
    exit 2
}

command -v sha256sum >/dev/null || fail "there is no sha256sum here" "install coreutils"

# Print the program trtexec: $TRTEXEC, the one on PATH, or where NVIDIA's packages put it.
find_trtexec() {
    local found
    if [[ -n ${TRTEXEC:-} ]]; then
        found=$TRTEXEC
    elif ! found=$(command -v trtexec); then
        found=/usr/src/tensorrt/bin/trtexec
    fi
    if [[ ! -x $found ]]; then
        fail "trtexec was not found at $found" "install TensorRT, or set TRTEXEC to the program's path"
    fi
    printf '%s' "$found"
}

# Print "MAJOR MINOR PATCH SOURCE" of the TensorRT that trtexec belongs to.
#
# Its first line names NV_TENSORRT_VERSION: 8201 is 8.2.1 (1000 major + 100 minor + patch up to 9), 100300 is 10.3.0
# (10000 major + 100 minor + patch from 10 on).  Where it does not, the package of the library tells.
find_version() {
    local text number package
    text=$("$1" --help 2>&1) || true
    if [[ $text =~ \[TensorRT\ v([0-9]+)\] ]]; then
        number=$((10#${BASH_REMATCH[1]}))
        if ((number < 10000)); then
            printf '%d %d %d trtexec' $((number / 1000)) $((number / 100 % 10)) $((number % 100))
        else
            printf '%d %d %d trtexec' $((number / 10000)) $((number / 100 % 100)) $((number % 100))
        fi
    elif [[ $text =~ TensorRT(\ version:|\ v|-)\ ?([0-9]+)\.([0-9]+)\.([0-9]+) ]]; then
        printf '%d %d %d trtexec' "${BASH_REMATCH[2]}" "${BASH_REMATCH[3]}" "${BASH_REMATCH[4]}"
    elif package=$(dpkg-query -W -f='${Status} ${Version}\n' 'libnvinfer[0-9]*' 2>/dev/null | grep '^install ok') &&
        [[ $package =~ \ ([0-9]+)\.([0-9]+)\.([0-9]+) ]]; then
        printf '%d %d %d dpkg' "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" "${BASH_REMATCH[3]}"
    else
        fail "neither '$1 --help' nor dpkg names the version of TensorRT" \
            "set TRTEXEC to NVIDIA's own trtexec, which names it in its first line"
    fi
}

# Whether TensorRT's version is VERSION ("8.4") or later.
since() {
    local major minor
    IFS=. read -r major minor <<<"$1"
    ((TENSORRT_MAJOR * 1000 + TENSORRT_MINOR >= major * 1000 + minor))
}

# Whether it is VERSION or earlier, whatever the patch.
at_most() {
    local major minor
    IFS=. read -r major minor <<<"$1"
    ((TENSORRT_MAJOR * 1000 + TENSORRT_MINOR <= major * 1000 + minor))
}

# Set TRTEXEC, TENSORRT, TENSORRT_MAJOR, TENSORRT_MINOR, TENSORRT_PATCH and TENSORRT_SOURCE, or refuse the version.
use_tensorrt() {
    local version
    TRTEXEC=$(find_trtexec)
    version=$(find_version "$TRTEXEC")
    # shellcheck disable=SC2034  # build_engine.sh records the source
    read -r TENSORRT_MAJOR TENSORRT_MINOR TENSORRT_PATCH TENSORRT_SOURCE <<<"$version"
    TENSORRT=$TENSORRT_MAJOR.$TENSORRT_MINOR.$TENSORRT_PATCH
    if ! since "$KIT_TENSORRT_FIRST" || ! at_most "$KIT_TENSORRT_LAST"; then
        fail "this kit is for TensorRT $KIT_TENSORRT_FIRST to $KIT_TENSORRT_LAST, and here is TensorRT $TENSORRT" \
            "build the bundle for the version here, with \`tsexport build ... --device @tensorrt-$TENSORRT_MAJOR.$TENSORRT_MINOR\`"
    fi
}

# Set OUTPUT to the absolute path of a folder for results, made where absent.
use_output() {
    mkdir -p -- "$1"
    OUTPUT=$(cd -- "$1" && pwd -P)
    if [[ -e $KIT_ROOT/manifest.json && $OUTPUT/ == "$KIT_ROOT"/* ]]; then
        rmdir -p -- "$OUTPUT" 2>/dev/null || true
        fail "$OUTPUT lies in the bundle, whose files are sealed" "name a folder outside of it with --output"
    fi
}

sha256_of() {
    local line
    line=$(sha256sum <"$1")
    printf '%s' "${line%% *}"
}

# Print text on one line, without control characters, and at most 1000 characters of it.
one_line() {
    local text
    text=$(printf '%s' "$1" | tr '\000-\037\177' ' ')
    printf '%s' "${text:0:1000}"
}

# put FILE KEY VALUE
put() {
    printf '%s=%s\n' "$2" "$(one_line "$3")" >>"$1"
}

# Print the value of KEY in FILE, nothing where it has none.
value_of() {
    local line
    while IFS= read -r line; do
        if [[ $line == "$2="* ]]; then
            printf '%s' "${line#*=}"
            return
        fi
    done <"$1"
}

# Print what follows "LABEL: " in a log of trtexec, the first time it stands there.
logged() {
    sed -n "s/^.*$2: *//p" "$1" | sed -n '1p'
}

# Print the shapes of all inputs at a batch size, as trtexec's --shapes takes them.
shapes_at() {
    local text='' input
    for input in "${KIT_INPUTS[@]}"; do
        text+=${text:+,}${input//@batch/$1}
    done
    printf '%s' "$text"
}

# run_trtexec LOG FLAG...: run it with its output in a log, and show the end of that where it fails.
run_trtexec() {
    local log=$1
    shift
    printf '%q' "$TRTEXEC" >"$log.command"
    printf ' %q' "$@" >>"$log.command"
    printf '\n' >>"$log.command"
    if ! "$TRTEXEC" "$@" >"$log" 2>&1; then
        tail -n 20 -- "$log" >&2
        fail "trtexec failed; all it said is in $log" "the command is in $log.command"
    fi
}

batch_is_whole_number() {
    [[ $1 =~ ^[1-9][0-9]{0,8}$ ]]
}
