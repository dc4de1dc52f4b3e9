#!/usr/bin/env bash
# What only a GPU can show, in one call and within 8 minutes: builds the CUDA kernels for the GPU at
# hand, tests them, lets compute-sanitizer look at small cases if it is installed, and measures.
#
# It needs Python with PyTorch, a GPU that PyTorch sees, nvcc and a C++ compiler; no network.
#   PYTHON              the interpreter; else .venv/bin/python, else python3
#   ISDA_GPU_RESULTS    the folder for summary.json, summary.md and logs (gpu_results)
#   ISDA_GPU_WHEELS     a folder of wheels of packages that this interpreter lacks, to be used here
#   ISDA_GPU_REFERENCE  Deformable DETR's folder models/ops, to be compiled and measured beside ours
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

budget=470
started=$(date +%s)
failed=0

# step NAME COMMAND...: run it in what is left of the time, its output into NAME.log.
step() {
  local name=$1 before now status=0
  shift
  before=$(date +%s)
  local left=$((started + budget - before))
  echo "gpu_check: $name"
  if [ "$left" -le 0 ]; then
    printf '%s\tno time left\t0\n' "$name" >>"$results/steps.tsv"
    failed=1
    return 0
  fi
  timeout "$left" "$@" >"$results/$name.log" 2>&1 || status=$?
  now=$(date +%s)
  case $status in
    0) status=passed ;;
    124) status="ran out of time"; failed=1 ;;
    *) status=failed; failed=1; tail -n 25 "$results/$name.log" ;;
  esac
  printf '%s\t%s\t%d\n' "$name" "$status" "$((now - before))" >>"$results/steps.tsv"
}

skip() {
  echo "gpu_check: $1 skipped: $2"
  printf '%s\tskipped: %s\t0\n' "$1" "$2" >>"$results/steps.tsv"
}

step build env ISDA_BUILD=cuda TORCH_CUDA_ARCH_LIST="$capability" \
  "$python" setup.py build_ext --inplace --force

step tests "$python" -m pytest -q -p no:cacheprovider -m gpu --junitxml "$results/tests.xml" \
  tests/ops

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    # PyTorch's cache of memory would hide what is read beyond a tensor.
    step "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$python" -m pytest -q -p no:cacheprovider -m gpu tests/ops -k every_schedule
  done
else
  skip sanitizer "compute-sanitizer is not installed"
fi

if [ -f benchmarks/msda.py ]; then
  step benchmark "$python" benchmarks/msda.py --device cuda --dtypes float32,bfloat16 \
    --batches 1,8 --offsets init,wide --rounds 5 --memory --output "$results/msda" \
    ${ISDA_GPU_REFERENCE:+--reference-cuda "$ISDA_GPU_REFERENCE"}
else
  skip benchmark "there is no benchmarks/msda.py"
fi

"$python" tools/summarise_gpu_check.py "$results"
echo "gpu_check: results are in $results"
exit "$failed"
