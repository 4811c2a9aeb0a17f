#!/usr/bin/env bash
# lint.sh - format, widths, static analysis, scripts, names, and where includes may point. A tool
# that is not installed is named and left out.
set -u
cd "$(dirname "$0")/.." || exit 2
bad=0
step() { echo "== $1"; }
failed() { bad=1; }
have() { command -v "$1" >/dev/null || { echo "lint: $1 is not installed: left out" >&2; return 1; }; }

list() { { git ls-files "$@" 2>/dev/null || ls "$@"; } | grep -v '^common/html5.h$'; } # html5.h is made by html5.py
mapfile -t sources < <(list 'common/*.c' 'graphs/*.c' 'kernels/*.c' 'stages/*.c')
mapfile -t tests < <(list 'tests/*.c')
mapfile -t pages < <(list '*.md')
mapfile -t formatted < <(list '*.c' '*.h' '*.cc')

mapfile -t layered < <(list 'common/*' 'kernels/*' 'graphs/*' 'stages/*' | grep -E '\.(c|h|cc|cu|cuh)$')

step "files' names: letters, digits and . _ - / + alone"
git ls-files -z 2>/dev/null | tr '\n\0' ' \n' | { ! grep -vE '^[A-Za-z0-9._/+-]+$'; } || failed

step 'includes run one way: stages -> graphs -> kernels -> common; nothing includes tests'
grep -nE '^ *# *include "' "${layered[@]}" | awk -F'[:"]' '
    BEGIN { level["common"] = 1; level["kernels"] = 2; level["graphs"] = 3; level["stages"] = 4 }
    { from = $1; to = $4; sub("/.*", "", from); sub("/.*", "", to) }
    level[to] == 0 || level[to] > level[from] { printf "%s:%s: includes \"%s\": want a path from the top of the tree, and not from %s\n", $1, $2, $4, to; bad = 1 }
    END { exit bad }' || failed

step 'no include from one program into another, none into a program'
programs=$(list 'stages/*/main.c' | sed 's|/main.c$||')
for p in $programs; do
    grep -nE "^ *# *include \"$p/" "${layered[@]}" | grep -v "^$p/" |
        sed "s|\$|: $p is a program of its own, want what both need in a folder without a main.c|"
done | { ! grep .; } || failed

step 'no circle of includes in stages/: a module is a header with its source'
grep -oE '^ *# *include "stages/[^"]*' "${layered[@]}" | sed -E 's/^([^:]*):.*"/\1 /; s/\.[a-z]+( |$)/\1/g' |
    awk '$1 ~ /^stages/ && $1 != $2' | sort -u | tsort 2>&1 >/dev/null | sed 's/^tsort: /circle: /' | { ! grep .; } || failed

step 'comments and Markdown: at most 100 columns; a row of a table, a link or a fenced block may stand'
awk 'length > 100 && (/\/\*/ || /^ *\*/ || /\/\//) { printf "%s:%d: %d columns, want at most 100\n", FILENAME, FNR, length; bad = 1 }
    END { exit bad }' "${layered[@]}" "${tests[@]}" || failed
awk 'FNR == 1 { fence = 0 }
    /^ *```/ { fence = !fence }
    length > 100 && !fence && !/^ *\|/ && !/https?:/ { printf "%s:%d: %d columns, want at most 100\n", FILENAME, FNR, length; bad = 1 }
    END { exit bad }' "${pages[@]}" || failed

if [ -f build/release/libsluice.a ]; then
    step 'external names of the library begin with sl_ (data tables: SL_)'
    # _Z and DW.ref.: what a C++ compiler makes by itself.
    nm -g --defined-only build/release/libsluice.a 2>/dev/null | awk 'NF == 3 && $3 !~ /^(sl_|SL_|_Z|DW\.ref\.)/ { print "libsluice.a: " $3; bad = 1 } END { exit bad }' || failed
fi

if have clang-format; then
    step 'format'
    clang-format --dry-run -Werror --ferror-limit=3 "${formatted[@]}" || failed
fi

if have clang-tidy; then
    step 'clang-tidy'
    # Left out: what the style means to do (strcmp as a truth value, memcpy without an end), or what
    # is no mistake here (casts after sums of ints that are small).
    checks='-*,bugprone-*,performance-*,misc-redundant-expression,misc-static-assert,misc-unused-parameters,-bugprone-suspicious-string-compare'
    checks+=',-bugprone-not-null-terminated-result,-bugprone-easily-swappable-parameters,-bugprone-narrowing-conversions,-bugprone-reserved-identifier'
    checks+=',-bugprone-implicit-widening-of-multiplication-result,-bugprone-misplaced-widening-cast,-bugprone-macro-parentheses,-performance-no-int-to-ptr'
    # shellcheck disable=SC2016 # the inner shell's
    printf '%s\0' "${sources[@]}" | xargs -0 -P "$(nproc)" -n 6 sh -c 'checks=$1; flags=$2; shift 2
        exec clang-tidy --quiet --warnings-as-errors="*" --checks="$checks" "$@" -- $flags 2>/dev/null' x "$checks" \
        "-w -std=c17 -D_GNU_SOURCE -I. $(pkg-config --cflags libzmq libavcodec jansson libconfig openblas libutf8proc)" || failed
fi

if have cppcheck; then
    step 'cppcheck'
    # Suppressed: its mistakes with vectors filled lane by lane, results set behind `if (!rc)`,
    # designated initialisers, an int8_t * that points at a field, and a NULL that ends a list (a
    # pointer where this builds).
    cppcheck --quiet -j "$(nproc)" --std=c11 --language=c --enable=warning,performance,portability --inline-suppr --suppress=missingIncludeSystem \
        --suppress='uninitvar:kernels/cpu/*' --suppress=uninitStructMember --suppress=unknownEvaluationOrder --suppress=invalidPointerCast \
        --suppress='memleakOnRealloc:tests/*' --suppress=varFuncNullUB -I. -D_GNU_SOURCE -D__linux__ --error-exitcode=1 --template='{file}:{line}: {message} [{id}]' \
        "${sources[@]}" "${tests[@]}" || failed
fi

if have shellcheck; then
    step 'shellcheck'
    shellcheck tests/*.sh tests/clients/*.sh conf/slurm/*.sbatch .ci/run || failed
fi

[ $bad -eq 0 ] && echo 'lint: clean'
exit $bad
