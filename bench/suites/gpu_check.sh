#!/bin/sh
# The tests that need a GPU, and the suite gpu_runs.py, on a machine where tsexport is not installed:
#
#     bench/suites/gpu_check.sh OUTPUT [options of gpu_runs.py]
#
# Everything goes below the folder OUTPUT.  PYTHON names the interpreter (python3), which needs torch, numpy, onnx,
# click, rich, psutil, py-cpuinfo, safetensors and pytest.  The rooms are linked into a package as the Makefile's
# `types` does.  A failed test does not keep the suite from running; the exit code is that of what failed first.
set -u
[ $# -ge 1 ] || { echo "usage: $0 OUTPUT [options of gpu_runs.py]" >&2; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd) || exit 2
mkdir -p "$1" && output=$(cd "$1" && pwd) || exit 2
shift
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
"$python" bench/suites/gpu_runs.py --output "$output" "$@" 2> "$output/suite.txt"
suite=$?
tail -n 150 "$output/suite.txt"
[ "$tests" -ne 0 ] && exit "$tests"
exit "$suite"
