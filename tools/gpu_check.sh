#!/usr/bin/env bash
# What only a GPU can show, in one call and within 8 minutes: builds the CUDA kernels for the GPU at
# hand, tests them, lets compute-sanitizer look at small cases if it is installed, and measures.
#
# It needs Python with PyTorch, a GPU that PyTorch sees, nvcc and a C++ compiler; no network.
#   PYTHON              the interpreter; else .venv/bin/python, else python3
#   ISDA_GPU_RESULTS    the folder for summary.json, summary.md and logs (gpu_results)
#   ISDA_GPU_WHEELS     a folder of wheels of packages that this interpreter lacks, to be used here
#   ISDA_GPU_REFERENCE  Deformable DETR's folder models/ops, to be compiled and measured beside ours
#   ISDA_GPU_SECONDS    the time for everything (470)
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "gpu_check: $*" >&2; exit 1; }

python=${PYTHON:-}
if [ -z "$python" ]; then
  python=python3
  if [ -x .venv/bin/python ]; then python=$PWD/.venv/bin/python; fi
fi
command -v "$python" >/dev/null || fail "there is no interpreter $python; PYTHON=... names another"
results=${ISDA_GPU_RESULTS:-gpu_results}
mkdir -p "$results"
results=$(cd "$results" && pwd)
rm -f "$results"/summary.* "$results"/*.log "$results"/steps.tsv

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$PWD/projects${PYTHONPATH:+:$PYTHONPATH}
if [ -n "${ISDA_GPU_WHEELS:-}" ]; then
  ls "$ISDA_GPU_WHEELS"/*.whl >/dev/null 2>&1 || fail "there are no wheels in $ISDA_GPU_WHEELS"
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
    --target "$work/site" "$ISDA_GPU_WHEELS"/*.whl || fail "the wheels cannot be installed"
  export PYTHONPATH=$PYTHONPATH:$work/site
fi

probe='
import sys
try:
    import torch
except ImportError as error:
    sys.exit(f"{sys.executable} has no PyTorch ({error}); PYTHON=... names another interpreter")
if not torch.cuda.is_available():
    sys.exit(f"PyTorch {torch.__version__} sees no CUDA GPU, and all of this is about one")
print("%d.%d" % torch.cuda.get_device_capability())
'
capability=$("$python" -c "$probe" 2>"$work/probe") || fail "$(tail -n 1 "$work/probe")"

budget=${ISDA_GPU_SECONDS:-470}
started=$(date +%s)
failed=0

# What is left of the time but for a share of all of it, in percent, that later steps need.
left() { echo $((started + budget - $(date +%s) - budget * $1 / 100)); }

# step NAME SHARE COMMAND...: run it in what is left but for the SHARE, its output into NAME.log.
step() {
  local name=$1 seconds before status=0
  seconds=$(left "$2")
  shift 2
  before=$(date +%s)
  echo "gpu_check: $name"
  if [ "$seconds" -le 0 ]; then
    printf '%s\tno time left\t0\n' "$name" >>"$results/steps.tsv"
    failed=1
    return 0
  fi
  timeout -k 5 "$seconds" "$@" >"$results/$name.log" 2>&1 || status=$?
  case $status in
    0) status=passed ;;
    124 | 137) status="ran out of time"; failed=1 ;;
    *) status=failed; failed=1; tail -n 25 "$results/$name.log" ;;
  esac
  printf '%s\t%s\t%d\n' "$name" "$status" "$(($(date +%s) - before))" >>"$results/steps.tsv"
}

skip() {
  echo "gpu_check: $1 skipped: $2"
  printf '%s\tskipped: %s\t0\n' "$1" "$2" >>"$results/steps.tsv"
}

step build 65 env ISDA_BUILD=cuda TORCH_CUDA_ARCH_LIST="$capability" \
  "$python" setup.py build_ext --inplace --force

# Tests of kernels that do not load are skipped, which must not pass for success.
step loads 60 "$python" -c '
import sys
from isda import ops
sys.exit(ops.backends().missing.get("cuda"))
'

step tests 50 "$python" -m pytest -q -p no:cacheprovider -m gpu --junitxml "$results/tests.xml" \
  tests/ops

sanitizer=
for place in "$(command -v compute-sanitizer || true)" \
  "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" \
  "$work"/site/nvidia/*/bin/compute-sanitizer; do
  if [ -z "$sanitizer" ] && [ -x "$place" ]; then sanitizer=$place; fi
done
if [ -n "$sanitizer" ]; then
  reserve=38
  for tool in memcheck racecheck; do
    # Only our kernels. What PyTorch asks of CUDA may fail and be handled. Its cache of memory would
    # hide what is read beyond a tensor.
    step "$tool" "$reserve" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      "$sanitizer" --tool "$tool" --kernel-name kns=isda --report-api-errors no --error-exitcode 1 \
      "$python" -m pytest -q -p no:cacheprovider -m gpu tests/ops/test_cuda.py -k every_schedule
    reserve=26
  done
else
  skip sanitizer "compute-sanitizer is not installed"
fi

# It stops by itself before it would be stopped, and then still writes what it has.
step benchmark 0 "$python" benchmarks/msda.py --device cuda --dtypes float32,bfloat16 \
  --batches 1,8 --offsets wide,init --rounds 5 --floor 0.05 --memory \
  --within "$(left 8)" --output "$results/msda" \
  ${ISDA_GPU_REFERENCE:+--reference-cuda "$ISDA_GPU_REFERENCE"}

"$python" tools/summarise_gpu_check.py "$results"
echo "gpu_check: results are in $results"
exit "$failed"
