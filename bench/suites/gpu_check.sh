#!/bin/sh
# The tests that need a GPU, and the suite gpu_runs.py, on a machine where tsexport is not installed:
#
#     bench/suites/gpu_check.sh OUTPUT [--bundle FOLDER]... [options of gpu_runs.py]
#
# Everything goes below the folder OUTPUT.  Each bundle (no blanks in its path) is measured by `tsexport bench`, into
# bench-NAME.json.  PYTHON names the interpreter (python3), which needs torch, numpy, onnx, click, rich, psutil,
# py-cpuinfo, safetensors and pytest.  The rooms are linked into a package as the Makefile's `types` does.  What failed
# does not keep the rest from running; the exit code is that of what failed first.
set -u
usage="usage: $0 OUTPUT [--bundle FOLDER]... [options of gpu_runs.py]"
[ $# -ge 1 ] || { echo "$usage" >&2; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd) || exit 2
mkdir -p "$1" && output=$(cd "$1" && pwd) || exit 2
shift
bundles=
while [ "${1:-}" = --bundle ]; do
    [ -f "${2:-}/manifest.json" ] || { echo "$usage: ${2:-nothing} is no bundle's folder" >&2; exit 2; }
    bundles="$bundles $(cd "$2" && pwd)"
    shift 2
done
python=${PYTHON:-python3}
links=$(mktemp -d) || exit 2
trap 'rm -rf "$links"' EXIT
mkdir "$links/tsexport"
for part in "$root"/src/tsexport/* "$root/exporters" "$root/quantize" "$root/runtimes" "$root/models" "$root/calibration" "$root/bench"; do
    ln -s "$part" "$links/tsexport/"
done
export PYTHONPATH="$links${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
cd "$root" || exit 2
nvidia-smi > "$output/nvidia-smi.txt" 2>&1
# Fixtures of the other tests need what is not installed here; another torch's warnings are no failures.
timeout 150 "$python" -m pytest -m gpu --noconftest -p no:cacheprovider -W default -q \
    tests/runtimes/test_torch_cuda.py tests/bench/test_gpu_runs.py > "$output/tests.txt" 2>&1
tests=$?
tail -n 15 "$output/tests.txt"
measured=0
for bundle in $bundles; do
    name=$(basename "$bundle")
    timeout 60 "$python" -P -m tsexport bench "$bundle" --batch 1 --batch 10 --batch 32 --seconds 2 --json \
        > "$output/bench-$name.json" 2> "$output/bench-$name.txt"
    code=$?
    tail -n 5 "$output/bench-$name.txt"
    echo "$name: bench ended with $code"
    case $code in 0 | 6) ;; *) measured=$code ;; esac  # 6: no row of the tables is this GPU's
done
"$python" bench/suites/gpu_runs.py --output "$output" "$@" 2> "$output/suite.txt"
suite=$?
tail -n 150 "$output/suite.txt"
[ "$tests" -ne 0 ] && exit "$tests"
[ "$measured" -ne 0 ] && exit "$measured"
exit "$suite"
