#!/usr/bin/env bash
# sanitize.sh - runs the tests built with sanitizers; any report, from a test or from a stage
# program that it started, is a failure.
#
#   tests/sanitize.sh asan|tsan TEST...      names as in tests/
#
#   SLUICE_TEST_QUICK=1   (the default here) asks slow tests for a part of their cases
#
# asan: addresses, leaks, undefined behaviour, all tests. tsan: data races, the tests named below,
# where threads are, a golden case through all stages among them.
set -u
cd "$(dirname "$0")/.." || exit 2
flavour=$1
shift
threaded='test_journal_file test_journal_redis test_mover test_fleet_queue test_fleet test_serve test_serve_kill test_lease test_lease_device test_lease_hostile test_log test_preview test_ops_context test_wire test_video_file test_kill test_pipeline test_turns test_instances test_ranks test_run_golden'

build=build/$flavour reports=$PWD/build/$flavour/reports
rm -rf "$reports" && mkdir -p "$reports" || exit 2
export SLUICE_KILLS=${SLUICE_KILLS-few} SLUICE_BIN=$build/bin SLUICE_TEST_QUICK=${SLUICE_TEST_QUICK-1} TEST_SLOW=${TEST_SLOW:-8}
case $flavour in
asan)
    # Not detect_stack_use_after_return: gcc 12 puts vectors of 64 bytes there at addresses that are
    # no multiple of 64, and reads them as if they were.
    common=halt_on_error=1:print_stacktrace=1:log_path=$reports/report
    export ASAN_OPTIONS=$common:detect_leaks=1:strict_string_checks=1:check_initialization_order=1:exitcode=99
    export UBSAN_OPTIONS=$common LSAN_OPTIONS=suppressions=$PWD/tests/lsan.supp:print_suppressions=0
    tests=("$@")
    ;;
tsan)
    # Addresses as random as newer kernels make them are more than the sanitizer of gcc 12 and 13
    # can map: without that.
    setarch -R true 2>/dev/null && export TEST_WRAP='setarch -R'
    export TSAN_OPTIONS=halt_on_error=0:exitcode=99:second_deadlock_stack=1:suppressions=$PWD/tests/tsan.supp:log_path=$reports/report
    export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 # OpenMP's barriers are unknown to the sanitizer: built without
    tests=()
    for name; do case " $threaded " in *" $name "*) tests+=("$name") ;; esac done
    ;;
*) echo "sanitize.sh: unknown flavour $flavour, want asan or tsan" >&2; exit 2 ;;
esac

echo "== $flavour"
tests/run.sh "${tests[@]/#/$build/tests/}"
status=$?
found=$(find "$reports" -type f | sort)
if [ -n "$found" ]; then
    for file in $found; do
        echo "---- ${file#"$PWD"/}"
        head -n 60 "$file"
    done
    echo "$flavour: $(wc -l <<<"$found") processes reported something, see above"
    status=1
fi
exit $status
