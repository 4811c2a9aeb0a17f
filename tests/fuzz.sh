#!/usr/bin/env bash
# fuzz.sh - runs libFuzzer targets, each for FUZZ_SECONDS (60), as many at a time as there are
# processors; ends with 1 if one found something.
#
#   tests/fuzz.sh build/fuzz/tests/fuzz_NAME...
#
# What they learn stays in build/fuzz/corpus/NAME and is where the next run begins; seeds come from
# the golden files and conf. A finding is written to build/fuzz/findings and shown: run the target
# with that file to see it again.
set -u
cd "$(dirname "$0")/.." || exit 2
top=build/fuzz
mkdir -p $top/log $top/findings || exit 2
at_a_time=$(nproc) # before OMP_NUM_THREADS, which it heeds
# Memory is the programs' own affair to limit: a request that cannot be met is an error for them, as
# without a sanitizer.
export ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1

# $2, at most $3 bytes of it, after the bytes that printf makes of $4, as a seed of $1.
seed() {
    local to
    to=$top/corpus/$1/seed-$(cksum <<<"$2$4" | cut -d' ' -f1)
    # shellcheck disable=SC2059 # the format is the bytes
    [ -s "$to" ] || { printf "$4"; head -c "$3" "$2"; } >"$to"
}

seeds() {
    local file kind
    case $1 in
    conf) for file in conf/*.cfg tests/golden/golden.cfg; do seed conf "$file" 20000 ''; done ;;
    journal) # a row as the journal writes it; a good file with its version changed, and with nothing
        seed journal /dev/null 0 'R\0\14\14\140\0\0\0\0\0\0\0\0\10\11\200\14\14\14\14\14\6\12\14\13'
        seed journal /dev/null 0 'P\0\77\2'
        seed journal /dev/null 0 'P' ;;
    model) # the first byte picks the reader
        for file in tests/golden/tiny-*/*/{transformer,.}/config.json tests/golden/*/transformer/config.json; do [ -f "$file" ] && seed model "$file" 20000 '\0'; done
        for kind in 1:text_encoder/config 2:image_encoder/config 3:image_processor/preprocessor_config 4:vae/config 5:scheduler/scheduler_config; do
            seed model "tests/golden/tiny-i2v/model/${kind#*:}.json" 20000 "\\${kind%%:*}"
        done ;;
    picture) for file in tests/golden/pictures/*.{png,jpg,webp}; do seed picture "$file" 20000 ''; done ;;
    prompt) for file in tests/golden/prompts/cases.json tests/golden/tiny-i2v/prompts.json; do seed prompt "$file" 3000 ''; done ;;
    safetensors) # the header, and what of the tensors fits; an index
        for file in tests/golden/tiny-i2v/model/*/*.safetensors tests/golden/tiny-i2v/*.safetensors tests/golden/tiny-i2v/model/*/*.index.json; do
            seed safetensors "$file" 12000 ''
        done ;;
    esac
}

# The words of the parser itself.
dictionary() {
    local source
    for source in common/"$1".c stages/*/"$1".c; do
        [ -f "$source" ] && grep -oE '"[A-Za-z0-9_.-]{2,30}"' "$source"
    done | sort -u >$top/log/"$1".dict
}

run_one() { # leaves build/fuzz/log/NAME.result: the exit status
    local program=$1 name=${1##*/fuzz_} status log words
    log=$top/log/$name.log
    mkdir -p $top/corpus/"$name"
    seeds "$name"
    dictionary "$name"
    words=$top/log/$name.dict
    [ -s "$words" ] || words=
    "$program" -max_total_time="${FUZZ_SECONDS:-60}" -timeout=20 -rss_limit_mb=4096 -artifact_prefix=$top/findings/"$name"- \
        ${words:+-dict="$words"} -max_len=20000 -verbosity=1 $top/corpus/"$name" >"$log" 2>&1 </dev/null
    status=$?
    echo $status >$top/log/"$name".result
    if [ $status -eq 0 ]; then printf '%-20s %s\n' "fuzz_$name" "$(sed -n 's/^Done \(.*\)/\1, nothing found/p' "$log")"
    else
        printf '%-20s FAILED (%d); its input: %s\n' "fuzz_$name" $status "$(sed -n 's/.*Test unit written to //p' "$log")"
        if grep -q '^==[0-9]*==\|runtime error' "$log"; then sed -n '/^==[0-9]*==\|runtime error/,$p' "$log" | head -n 60; else tail -n 20 "$log"; fi
    fi
}

trap 'kill $(jobs -p) 2>/dev/null; exit 130' INT TERM
for program; do
    while [ "$(jobs -rp | wc -l)" -ge "$at_a_time" ]; do wait -n; done
    run_one "$program" &
done
wait
bad=0
for program; do
    name=${program##*/fuzz_}
    [ "$(cat $top/log/"$name".result 2>/dev/null)" = 0 ] || bad=$((bad + 1))
done
[ $bad -eq 0 ]
