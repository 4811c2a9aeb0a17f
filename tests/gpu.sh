#!/usr/bin/env bash
# gpu.sh - the whole GPU suite on this machine in one call: what it is, every test of the plug-in,
# and, if asked for, the sanitizers and the benchmarks.
#
#   tests/gpu.sh [--sanitize] [--sanitize-tests] [--bench] [--quick] [--no-tests] [--only NAME]...
#                [--case NAME]... [--out DIR]
#
#   --sanitize         compute-sanitizer's memcheck and racecheck over runs of the tiny golden model,
#                      by one rank and by two
#   --case NAME        of those runs only NAME: tiny, halves or shares, or one of them with -memcheck
#                      or -racecheck
#   --sanitize-tests   memcheck over the tests, which takes long
#   --bench            `sluice bench` beside PyTorch's figures, if there is a PyTorch
#   --quick            the benchmarks' smallest size
#   --no-tests         no tests
#   --only NAME        only the test gpu_NAME
#   --out DIR          logs and JSON (default: log-gpu beside the tests)
# Nothing is compiled: make gpu does that before, or binaries from elsewhere are there, in bin and
# build/release/tests; among them is helper_weights, which makes the golden models' weights here
# (before gpu_NAME is started alone: run it once). The last lines are a table and `N passed, N
# failed`.
#
#   SLUICE_BIN   where the programs and the plug-in are (default bin)
#   GPU_TESTS    where the tests gpu_* are (default build/release/tests)
#   GPU_DEVICE   default cuda:0
#   GPU_SECOND   of a team's second rank under the sanitizers; default GPU_DEVICE
set -u
cd "$(dirname "$0")/.." || exit 2
export SLUICE_BIN=${SLUICE_BIN:-bin} SLUICE_CUDA=${SLUICE_CUDA:-}
tests=${GPU_TESTS:-build/release/tests} device=${GPU_DEVICE:-cuda:0}
sanitize='' sanitize_tests='' bench='' quick='' run_tests=1 only=() cases=() out=
say() { echo "gpu.sh: $*" >&2; }
while [ $# -gt 0 ]; do
    case "$1" in
    --sanitize) sanitize=1 ;;
    --sanitize-tests) sanitize_tests=1 ;;
    --bench) bench=1 ;;
    --quick) quick=--quick ;;
    --no-tests) run_tests='' ;;
    --only) shift; only+=("gpu_${1:?--only wants a name}") ;;
    --case) shift; cases+=("${1:?--case wants a name}") ;;
    --out) shift; out=${1:?--out wants a folder} ;;
    *) say "unknown option $1, want --sanitize, --sanitize-tests, --bench, --quick, --no-tests, --only NAME, --case NAME, --out DIR"; exit 2 ;;
    esac
    shift
done
out=${out:-$tests/log-gpu}
mkdir -p "$out" || exit 2
[ -n "$SLUICE_CUDA" ] || SLUICE_CUDA=$(realpath "$SLUICE_BIN/sluice_cuda.so" 2>/dev/null) # the tests lie in another folder than the plug-in
if [ -x "$tests/helper_weights" ]; then "$tests/helper_weights" || exit 2; fi
[ -e "$SLUICE_CUDA" ] || { say "no plug-in $SLUICE_BIN/sluice_cuda.so: make plugin, or SLUICE_CUDA=FILE"; exit 2; }

table=() passed=0 failed=0
row() { table+=("$(printf '%-34s %-8s %s' "$1" "$2" "$3")"); [ "$2" = ok ] || [ "$2" = skipped ] || failed=$((failed + ${4:-1})); }

# ---- the machine ----
echo "== machine"
gpu=$(nvidia-smi -L 2>/dev/null | grep '^GPU')
nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used,clocks.sm,power.limit --format=csv,noheader 2>/dev/null || echo "no nvidia-smi"
sed -n 's/^model name\t*: /CPU: /p' /proc/cpuinfo | sort | uniq -c
nvcc --version 2>/dev/null | tail -n 1
ldd "$SLUICE_CUDA" | grep -E 'cudnn|cublas|cudart|not found'
git log -1 --format='sources: %h %s' 2>/dev/null

# ---- tests ----
limit_of() { local n; n=$(sed -n '1,/\*\//s/.*limit: *\([0-9]*\).*/\1/p' "tests/$1.c" 2>/dev/null | head -n 1); echo "${n:-180}"; }

# run_test NAME LABEL LIMIT WRAP...: into LABEL.log; a row of the table, and of a failure what it
# says.
run_test() {
    local name=$1 label=$2 limit=$3 status p f s t0 word=ok
    shift 3
    t0=$(date +%s)
    timeout -k 5 "$limit" "$@" "$tests/$name" >"$out/$label.log" 2>&1 </dev/null
    status=$?
    p=$(grep -ac '^\[       OK \] ' "$out/$label.log")
    f=$(grep -a '^\[  FAILED  \] ' "$out/$label.log" | grep -av 'test(s)' | sort -u | wc -l)
    s=$(grep -a '^\[  SKIPPED \] ' "$out/$label.log" | grep -av 'test(s)' | sort -u | wc -l)
    [ $status -ne 0 ] && [ "$f" -eq 0 ] && f=1
    [ $status -eq 0 ] && [ "$p" -eq 0 ] && word=skipped
    [ -n "$gpu" ] && grep -aq '^\(gpu_[a-z_]*: \)\{0,1\}skipped: ' "$out/$label.log" && f=$((f + 1)) # there is a GPU, so it must be found
    [ $status -eq 124 ] || [ $status -eq 137 ] && echo "gpu.sh: ran past its limit of $limit s" >>"$out/$label.log"
    [ "$f" -gt 0 ] && word=FAILED
    passed=$((passed + p))
    row "$label" $word "$p passed, $f failed, $s skipped, $(($(date +%s) - t0)) s$([ $status -eq 0 ] || echo ", status $status")" "$f"
    echo "${table[-1]}"
    [ $word = FAILED ] && grep -av '^\[ RUN  \|^\[       OK \|^\[==' "$out/$label.log" | cut -c1-400 | tail -n 40
}

if [ -n "$run_tests" ]; then
    echo "== tests"
    for program in "$tests"/gpu_*; do
        name=${program##*/}
        case $name in *.*) continue ;; esac
        [ -x "$program" ] || continue
        [ ${#only[@]} -eq 0 ] || [[ " ${only[*]} " == *" $name "* ]] || continue
        run_test "$name" "$name" "$(limit_of "$name")"
    done
    [ ${#table[@]} -gt 0 ] || row tests FAILED "no gpu_* in $tests: make gpu-tests"
fi

# ---- sanitizers ----
golden=tests/golden/tiny-i2v
tiny_run() { # NAME LIMIT DEVICE GUIDANCE WRAP...: the tiny model through all processes
    local name=$1 limit=$2 on=$3 guidance=$4 video=$out/$1.mp4 status t0
    shift 4
    [ ${#cases[@]} -eq 0 ] || [[ " ${cases[*]} " == *" $name "* || " ${cases[*]} " == *" ${name%-*} "* ]] || return 0
    t0=$(date +%s)
    printf 'supervise: { stall_s = 600; };\n' >"$out/$name.cfg"
    timeout -k 5 "$limit" "$@" "$SLUICE_BIN/sluice" run --model $golden/model --image $golden/i2v-96x64x9.png --prompt 'A red kite over the hills.' --width 96 --height 64 \
        --frames 9 --steps 2 --seed 1 --guidance "$guidance" --device "$on" --conf "$out/$name.cfg" --quiet --json "$out/$name.json" -o "$video" >"$out/$name.log" 2>&1 </dev/null
    status=$?
    # cuDNN's attention orders its warps with asynchronous barriers, which racecheck does not
    # follow: what it says of those kernels alone is left out.
    errors=$(cat "$out/$name".san.* "$out/$name.log" 2>/dev/null | grep -a 'ERROR SUMMARY' | grep -avc ' 0 errors')
    races=$(cat "$out/$name".san.* 2>/dev/null | grep -a -A1 'Race reported between' | tr -d '\n' | sed 's/=* *Error: Race/\n&/g; s/=* *Warning: Race/\n&/g' | grep -a 'Race reported')
    cudnn=$(grep -ac 'at cudnn_generated.* at cudnn_generated' <<<"$races")
    errors=$((errors + $(grep -ac . <<<"$races") - cudnn))
    if [ $status -eq 0 ] && [ "$errors" -eq 0 ] && [ -s "$video" ]; then
        row "$name" ok "$(($(date +%s) - t0)) s, $(cat "$out/$name".san.* 2>/dev/null | grep -ac 'SUMMARY') summaries of the sanitizer$([ "$cudnn" -eq 0 ] || echo ", $cudnn reports of cuDNN's own kernels left out")"
        passed=$((passed + 1))
    else
        row "$name" FAILED "status $status, $errors summaries with errors, $(($(date +%s) - t0)) s"
        cat "$out/$name.log" "$out/$name".san.* 2>/dev/null | grep -a 'ERROR\|=========\|sluice' | head -n 40 | cut -c1-300
    fi
    echo "${table[-1]}"
}
if [ -n "$sanitize$sanitize_tests" ]; then
    echo "== compute-sanitizer"
    sanitizer=$(PATH=$PATH:/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer command -v compute-sanitizer)
    rm -f "$out"/*.san.*
    if [ -z "$sanitizer" ]; then
        row sanitizers FAILED "no compute-sanitizer on the PATH or in /usr/local/cuda"
        sanitize='' sanitize_tests=''
    fi
fi
if [ -n "$sanitize" ]; then
    # two ranks: each a branch, and both one forward
    for case in "tiny $device 5" "halves $device,${GPU_SECOND:-$device} 5" "shares $device,${GPU_SECOND:-$device} 1"; do
        read -r name on guidance <<<"$case"
        tiny_run "$name" 120 "$on" "$guidance"
        for tool in memcheck racecheck; do
            code=(--error-exitcode 86)
            [ $tool = memcheck ] || code=() # racecheck's reports of cuDNN's own kernel are none
            tiny_run "$name-$tool" 300 "$on" "$guidance" "$sanitizer" --tool $tool --target-processes all --require-cuda-init=no "${code[@]}" --log-file "$out/$name-$tool.san.%p"
        done
    done
fi
if [ -n "$sanitize_tests" ]; then
    for program in "$tests"/gpu_*; do
        name=${program##*/}
        case $name in *.*) continue ;; esac
        [ ${#only[@]} -eq 0 ] || [[ " ${only[*]} " == *" $name "* ]] || continue
        run_test "$name" "$name-memcheck" 240 "$sanitizer" --tool memcheck --target-processes all --require-cuda-init=no --error-exitcode 86
    done
fi

# ---- benchmarks ----
if [ -n "$bench" ]; then
    echo "== benchmarks"
    step() { # NAME COMMAND...
        local name=$1 t0
        shift
        t0=$(date +%s)
        if "$@" 2>&1 | tee "$out/$name.log"; then row "bench $name" ok "$(($(date +%s) - t0)) s"; else row "bench $name" FAILED "see $out/$name.log"; fi
    }
    set -o pipefail
    files=()
    step operations "$SLUICE_BIN/sluice" bench gemm attention conv --device "$device" $quick --json "$out/operations.json"
    if python3 -c 'import torch' 2>/dev/null; then
        step pytorch python3 tests/gpu_bench.py $quick --json "$out/pytorch.json"
    else row "bench pytorch" skipped "no PyTorch here"; fi
    step networks "$SLUICE_BIN/sluice" bench handover image text condition decode dit --device "$device" $quick --json "$out/networks.json"
    for f in operations networks; do [ -s "$out/$f.json" ] && files+=("$out/$f.json"); done
    echo
    if [ -s "$out/pytorch.json" ] && [ ${#files[@]} -gt 0 ]; then python3 tests/gpu_bench.py --compare "$out/pytorch.json" "${files[@]}"; fi
fi

# ---- what it came to ----
echo
echo "== summary"
[ ${#table[@]} -eq 0 ] || printf '%s\n' "${table[@]}"
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
