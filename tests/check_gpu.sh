#!/usr/bin/env bash
# Everything that only a GPU can show, each step with a limit of time; see the usage below.
set -uo pipefail

usage() {
    cat << 'TEXT'
usage: check_gpu.sh [--out FOLDER] [STEP ...]

Run on a machine with a CUDA device what only such a machine can show. Steps, all by default:
  tests      the tests of mmlska.ops and of the layers and backbones that use it, on the device
  memcheck   a small part of them under compute-sanitizer: accesses outside of tensors
  racecheck  the same: races in shared memory
  baseline   python -m benchmarks depthwise: PyTorch's own depth-wise convolutions
  benchmark  python -m benchmarks suite gpu

Logs and results go to FOLDER (default: work_dirs/gpu), a summary to FOLDER/summary.txt. The status is
that of the first step that fails. With a GPU for a few minutes only, start with python -m
benchmarks.gpu_first. compute-sanitizer comes with the CUDA toolkit; without it its
steps are left out, which the summary says.

PYTHON=python3           the Python that has torch with CUDA, Triton, NumPy and pytest; the package need
                         not be installed, and what needs more than these is skipped by name
MINUTES=10               limit of each step
BASELINE_ARGS=...        more options for the baseline
BENCHMARK_ARGS=...       more options for the benchmark
TEXT
}

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
MINUTES=${MINUTES:-10}
out=work_dirs/gpu
steps=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --out) [ $# -ge 2 ] || { usage >&2; exit 2; }; out=$2; shift 2 ;;
        tests | memcheck | racecheck | baseline | benchmark) steps+=("$1"); shift ;;
        *) printf 'check_gpu.sh: unknown step %s\n\n' "$1" >&2; usage >&2; exit 2 ;;
    esac
done
[ ${#steps[@]} -gt 0 ] || steps=(tests memcheck racecheck baseline benchmark)

if ! found=$("$PYTHON" -c 'import torch; assert torch.cuda.is_available(); print(torch.cuda.get_device_name(), "torch", torch.__version__)' 2> /dev/null); then
    printf 'check_gpu.sh: error: %s sees no CUDA device; this check is for machines with one (PYTHON=... chooses another Python)\n' \
        "$PYTHON" >&2
    exit 1
fi

mkdir -p "$out"
summary=$out/summary.txt
printf '%s\n%s\n' "$(date -u '+%F %R UTC')" "$found" | tee "$summary"
first_failure=0

# Three of the tests, which a sanitizer gets through in minutes.
SMALL_PART='tiles_and_programs or (gelu and half_precision) or (triton_cascade and two_runs)'

# Run a command with the limit of a step; its output goes to a log of that name.
step() {
    local name=$1 start=$SECONDS status=0
    shift
    timeout --kill-after=30s "${MINUTES}m" "$@" > "$out/$name.log" 2>&1 || status=$?
    local verdict=passed
    [ "$status" = 0 ] || verdict="FAILED with status $status"
    [ "$status" != 124 ] || verdict="CUT OFF after $MINUTES minutes"
    printf '%-10s %s, %s s, see %s\n' "$name" "$verdict" $((SECONDS - start)) "$out/$name.log" | tee -a "$summary"
    [ "$first_failure" != 0 ] || first_failure=$status
}

sanitize() {
    local tool=$1 sanitizer
    sanitizer=$(command -v compute-sanitizer || ls -d /usr/local/cuda*/bin/compute-sanitizer 2> /dev/null | tail -n 1)
    if [ -z "$sanitizer" ]; then
        printf '%-10s left out: there is no compute-sanitizer on this machine\n' "$tool" | tee -a "$summary"
        return
    fi
    # Without the cache of PyTorch's allocator every tensor has borders of its own.
    step "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 99 \
        "$PYTHON" -m pytest -q -x tests/test_ops -k "$SMALL_PART"
}

for name in "${steps[@]}"; do
    case $name in
        tests) step tests "$PYTHON" -m pytest -q tests/test_ops tests/test_layers tests/test_models/test_backbones/test_van.py \
            --junitxml "$out/tests.xml" ;;
        memcheck | racecheck) sanitize "$name" ;;
        baseline)
            # shellcheck disable=SC2086
            step baseline "$PYTHON" -m benchmarks depthwise --max-seconds 0.3 --no-compile \
                --json "$out/baseline.json" ${BASELINE_ARGS:-} ;;
        benchmark)
            # shellcheck disable=SC2086
            step benchmark "$PYTHON" -m benchmarks suite gpu --json "$out/benchmark.json" ${BENCHMARK_ARGS:-} ;;
    esac
done
exit "$first_failure"
