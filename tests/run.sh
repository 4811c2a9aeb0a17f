#!/usr/bin/env bash
# run.sh - runs test programs, each in its own process with a time limit, and counts: the last line
# is `N passed, N failed`.
#
#   tests/run.sh PROGRAM...
#
# A program's output is shown only if it fails; all of it stays in the folder log beside the
# programs. A line a program says how long it took, and the processor seconds of it and of all
# that it started and waited for.
#
# TEST_JOBS programs run at a time; the default is one more than there are CPUs (at most 8), for
# part of a test's time is waiting. Those that do little else run beside these, twice as many as
# there are CPUs. In either lane the longest begins first. The comment that opens tests/NAME.c may
# say
#
#   limit: N s   after which the program is ended (default 120)
#   takes: N s   alone on two cores (default 1); what the order goes by
#   run: waits   it mostly waits
#   run: alone   nothing else runs meanwhile: it measures
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

# OpenBLAS's kernels as the command settles them, for the tests that compute and start stages
# themselves: a byte does not depend on who started the process.
kernels=$("$SLUICE_BIN/sluice" --version 2>/dev/null | sed -n 's/^ *kernels *//p')
[ -z "$kernels" ] || export OPENBLAS_CORETYPE="$kernels"

# What the comment that opens tests/$1.c says after `$2:`; $3 if nothing.
says() {
    local word
    word=$(sed -n "1,/\*\//s/.*$2: *\([a-z0-9]*\).*/\1/p" "tests/$1.c" 2>/dev/null | head -n 1)
    echo "${word:-$3}"
}

# $1 in hundredths of a second, as seconds.
seconds() { printf '%d.%d' $(($1 / 100)) $(($1 / 10 % 10)); }

# Leaves NAME.log, the output, and NAME.result: exit status, how many tests passed, failed, were
# skipped, and the hundredths of processor seconds.
run_one() {
    local program=$1 name=${1##*/} limit t0 t1 cpu status passed failed skipped word=ok
    limit=$(($(says "$name" limit 120) * ${TEST_SLOW:-1}))
    t0=$(date +%s%N)
    # shellcheck disable=SC2086 # TEST_WRAP is several words
    timeout -k 5 "$limit" ${TEST_WRAP-} "$program" >"$log/$name.log" 2>&1 </dev/null &
    # shellcheck disable=SC2064 # this pid, now
    trap "kill $! 2>/dev/null; exit 1" TERM # timeout hands it on to all of the program's processes
    wait $!
    status=$?
    t1=$(date +%s%N)
    times >"$log/$name.times" # the second line is the children's: 1m2.345s 0m0.067s
    cpu=$(tail -n 1 "$log/$name.times" | tr 'ms' '  ' | awk '{ printf "%d", 100 * ($1 * 60 + $2 + $3 * 60 + $4) }')
    rm -f "$log/$name.times"
    [ $status -eq 124 ] || [ $status -eq 137 ] && echo "run.sh: $name ran past its limit of $limit s" >>"$log/$name.log"
    passed=$(grep -ac '^\[       OK \] ' "$log/$name.log")
    failed=$(grep -a '^\[  FAILED  \] ' "$log/$name.log" | grep -av 'test(s)' | sort -u | wc -l)
    skipped=$(grep -a '^\[  SKIPPED \] ' "$log/$name.log" | grep -av 'test(s)' | sort -u | wc -l)
    [ $status -ne 0 ] && [ "$failed" -eq 0 ] && failed=1 # died, or ran out of time
    [ $status -eq 0 ] && [ "$failed" -ne 0 ] && status=1
    [ $status -ne 0 ] && word="FAILED ($status)"
    printf '%-24s %4d tests %7s s %7s s of processors  %s\n' "$name" $((passed + failed)) "$(seconds $(((t1 - t0) / 10000000)))" "$(seconds "$cpu")" "$word"
    echo "$status $passed $failed $skipped $cpu" >"$log/$name.result"
}

# Runs those of "$@" whose head says `run: $1`, $2 at a time.
lane() {
    local lane=$1 most=$2 program
    shift 2
    trap 'kill $(jobs -p) 2>/dev/null; wait; exit 130' INT TERM
    for program; do
        [ "$(says "${program##*/}" run beside)" = "$lane" ] || continue
        while [ "$(jobs -rp | wc -l)" -ge "$most" ]; do wait -n; done
        run_one "$program" &
    done
    wait
}

cpus=$(nproc 2>/dev/null || echo 2)
most=${TEST_JOBS:-$((cpus < 7 ? cpus + 1 : 8))}
mapfile -t longest < <(for program; do echo "$(says "${program##*/}" takes 1) $program"; done | sort -s -k1,1nr | cut -d' ' -f2-)
t0=$(date +%s%N)
trap 'kill $(jobs -p) 2>/dev/null; wait; exit 130' INT TERM
lane waits $((2 * cpus)) "${longest[@]}" &
lane beside "$most" "${longest[@]}" &
wait
lane alone 1 "${longest[@]}" & # not in front: a signal is heard at once
wait
t1=$(date +%s%N)

passed=0 failed=0 skipped=0 cpu=0 bad=()
for program; do
    name=${program##*/}
    read -r status p f s c <"$log/$name.result" || { status=1 p=0 f=1 s=0 c=0; }
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s)) cpu=$((cpu + c))
    [ "$status" -eq 0 ] || bad+=("$name")
done
for name in ${bad[@]+"${bad[@]}"}; do
    printf '\n---- %s\n' "$name"
    head -c 100000 "$log/$name.log"
done
[ ${#bad[@]} -eq 0 ] || printf '\nfailing: %s\n' "${bad[*]}"
echo "$(seconds $(((t1 - t0) / 10000000))) s, $(seconds $cpu) s of $cpus processors"
[ $skipped -eq 0 ] || echo "$skipped skipped"
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
