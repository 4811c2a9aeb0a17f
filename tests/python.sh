#!/usr/bin/env bash
# python.sh - stages in Python: the package's own tests, and test_own_stage and test_filters with
# Python's stages. The last line is `N passed, N failed`.
#
#   tests/python.sh [TEST...]    of stages/python/tests: test_wire, test_stage, test_filter,
#                                test_denoise; default: all, test_own_stage and test_filters
#
#   SLUICE_BIN     where Sluice's programs are (default bin)
#   TESTS_BIN      where the programs test_own_stage and test_filters are
#
# A virtual environment of its own is made in build/python/venv, and again when
# stages/python/tests/requirements.txt changes.
set -u
cd "$(dirname "$0")/.." || exit 2
out=$PWD/build/python venv=$PWD/build/python/venv tests=stages/python/tests
programs=${TESTS_BIN:-build/release/tests}
export SLUICE_BIN=${SLUICE_BIN:-bin}
say() { echo "python: $*" >&2; }
install() { "$venv/bin/pip" install --disable-pip-version-check --no-compile "$@" >>"$out/pip.log" 2>&1; }

# torch for the CPU alone is a tenth of what comes otherwise: from where PyTorch keeps it, if that
# answers within some seconds. Its version is the newer one for pip.
make_venv() {
    local cpu=https://download.pytorch.org/whl/cpu extra=()
    python3 -m venv "$venv" || return
    "$venv/bin/python" -c "import urllib.request as u; u.urlopen('$cpu/torch/', timeout=5).read(1)" 2>/dev/null && extra=(--extra-index-url "$cpu")
    install ${extra[@]+"${extra[@]}"} -r $tests/requirements.txt setuptools
}

mkdir -p "$out" || exit 2
if ! cmp -s $tests/requirements.txt "$venv/made-of"; then
    say 'making build/python/venv: torch, diffusers (some minutes, once)'
    rm -rf "$venv"
    : >"$out/pip.log"
    make_venv || { tail -n 5 "$out/pip.log" >&2; say "the packages of $tests/requirements.txt cannot be installed, see above"; exit 1; }
    cp $tests/requirements.txt "$venv/made-of"
fi
# As a user installs it; from a copy, for pip builds in the folder.
rm -rf "$out/package"
cp -r stages/python "$out/package"
install --no-build-isolation --no-deps "$out/package" || { tail -n 5 "$out/pip.log" >&2; say 'stages/python cannot be installed, see above'; exit 1; }

passed=0 failed=0
count() { # NAME LOG STATUS PASSED FAILED
    local p=$4 f=$5
    [ "$3" -ne 0 ] && [ "$f" -eq 0 ] && f=1 # it did not come to its end
    [ "$f" -eq 0 ] || cat "$2"
    printf '%-24s %4d tests  %s\n' "$1" $((p + f)) "$([ "$f" -eq 0 ] && echo ok || echo FAILED)"
    passed=$((passed + p)) failed=$((failed + f))
}
names=("$@")
[ $# -gt 0 ] || names=(test_wire test_stage test_filter test_denoise test_own_stage test_filters)
for name in "${names[@]}"; do
    log=$out/$name.log
    if [ "$name" = test_own_stage ] || [ "$name" = test_filters ]; then
        SLUICE_PYTHON=$venv/bin/python SLUICE_TORCH=1 timeout -k 5 300 "$programs/$name" >"$log" 2>&1 </dev/null
        count "$name" "$log" $? "$(grep -ac '^\[       OK \] ' "$log")" "$(grep -a '^\[  FAILED  \] ' "$log" | grep -av 'test(s)' | sort -u | wc -l)"
    else
        PYTHONPATH=$tests timeout -k 5 300 "$venv/bin/python" -m unittest -v "$name" >"$log" 2>&1 </dev/null
        count "$name" "$log" $? "$(grep -ac ' \.\.\. ok$' "$log")" "$(grep -acE '^(FAIL|ERROR): ' "$log")"
    fi
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
