#!/usr/bin/env bash
# run.sh - runs test programs, each in its own process with a time limit, and counts: the last line
# is `N passed, N failed`.
#
#   tests/run.sh PROGRAM...
#
# A program's output is shown only if it fails; all of it stays in the folder log beside the
# programs. TEST_JOBS programs run at a time, those with the longest limit first; the default is one
# more than there are CPUs (at most 8), for much of a test's time is waiting. The comment that opens
# tests/NAME.c may say `run: alone` (nothing else runs meanwhile: it measures) and `limit: N s`
# (default 120).
#
#   SLUICE_BIN   where Sluice's programs are (default bin); handed on
#   TEST_SLOW    factor on the time limits (default 1), for sanitizers
#   TEST_WRAP    a command to put before each program
set -u
cd "$(dirname "$0")/.." || exit 2
[ $# -gt 0 ] || { echo "run.sh: no test programs given" >&2; exit 2; }
export SLUICE_BIN=${SLUICE_BIN:-bin} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # programs at a time share the cores: no spinning
unset CMOCKA_MESSAGE_OUTPUT CMOCKA_XML_FILE MAKEFLAGS MAKELEVEL MFLAGS
log=$(dirname "$1")/log
mkdir -p "$log" && rm -f "$log"/* || exit 2

# What the comment that opens tests/$1.c says after `$2:`.
says() { sed -n "1,/\*\//s/.*$2: *\([a-z0-9]*\).*/\1/p" "tests/$1.c" 2>/dev/null | head -n 1; }

# Seconds that the program may take.
limit_of() {
    local limit
    limit=$(says "$1" limit | grep -x '[0-9]*')
    echo "${limit:-120}"
}

# Leaves NAME.log, the output, and NAME.result: exit status, then how many tests passed, failed,
# were skipped.
run_one() {
    local program=$1 name=${1##*/} limit t0 t1 status passed failed skipped word=ok
    limit=$(($(limit_of "$name") * ${TEST_SLOW:-1}))
    t0=$(date +%s%N)
    # shellcheck disable=SC2086 # TEST_WRAP is several words
    timeout -k 5 "$limit" ${TEST_WRAP-} "$program" >"$log/$name.log" 2>&1 </dev/null &
    # shellcheck disable=SC2064 # this pid, now
    trap "kill $! 2>/dev/null; exit 1" TERM # timeout hands it on to all of the program's processes
    wait $!
    status=$?
    t1=$(date +%s%N)
    [ $status -eq 124 ] || [ $status -eq 137 ] && echo "run.sh: $name ran past its limit of $limit s" >>"$log/$name.log"
    passed=$(grep -ac '^\[       OK \] ' "$log/$name.log")
    failed=$(grep -a '^\[  FAILED  \] ' "$log/$name.log" | grep -av 'test(s)' | sort -u | wc -l)
    skipped=$(grep -a '^\[  SKIPPED \] ' "$log/$name.log" | grep -av 'test(s)' | sort -u | wc -l)
    [ $status -ne 0 ] && [ "$failed" -eq 0 ] && failed=1 # died, or ran out of time
    [ $status -eq 0 ] && [ "$failed" -ne 0 ] && status=1
    [ $status -ne 0 ] && word="FAILED ($status)"
    printf '%-24s %4d tests %6d.%d s  %s\n' "$name" $((passed + failed)) $(((t1 - t0) / 1000000000)) $(((t1 - t0) / 100000000 % 10)) "$word"
    echo "$status $passed $failed $skipped" >"$log/$name.result"
}

cpus=$(nproc 2>/dev/null || echo 2)
most=${TEST_JOBS:-$((cpus < 7 ? cpus + 1 : 8))}
together=() alone=() longest=()
mapfile -t longest < <(for program; do echo "$(limit_of "${program##*/}") $program"; done | sort -s -k1,1nr | cut -d' ' -f2-)
for program in "${longest[@]}"; do
    if [ "$(says "${program##*/}" run)" = alone ]; then alone+=("$program"); else together+=("$program"); fi
done
trap 'kill $(jobs -p) 2>/dev/null; wait; exit 130' INT TERM
for program in ${together[@]+"${together[@]}"}; do
    while [ "$(jobs -rp | wc -l)" -ge "$most" ]; do wait -n; done
    run_one "$program" &
done
wait
for program in ${alone[@]+"${alone[@]}"}; do run_one "$program" & wait; done # waiting, not in front: a signal is heard at once

passed=0 failed=0 skipped=0 bad=()
for program; do
    name=${program##*/}
    read -r status p f s <"$log/$name.result" || { status=1 p=0 f=1 s=0; }
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    [ "$status" -eq 0 ] || bad+=("$name")
done
for name in ${bad[@]+"${bad[@]}"}; do
    printf '\n---- %s\n' "$name"
    head -c 100000 "$log/$name.log"
done
[ ${#bad[@]} -eq 0 ] || printf '\nfailing: %s\n' "${bad[*]}"
[ $skipped -eq 0 ] || echo "$skipped skipped"
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
