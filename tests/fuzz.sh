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
export ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 LSAN_OPTIONS=suppressions=tests/lsan.supp:print_suppressions=0 OMP_NUM_THREADS=1

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
    form) # the first byte: J a body of JSON, T or F texts and files of a multipart form, else a data URL
        seed form /dev/null 0 'J{"prompt":"a lake","size":"96x64","seconds":"1.5","seed":7,"input_reference":{"image_url":"data:image/png;base64,iVBORw0KGgo="}}'
        seed form /dev/null 0 'J{"negative_prompt":"x","num_inference_steps":4,"max_area":61440,"dump":true,"priority":-3,"model":"m","noise":"data:;base64,AAAA","fbcache":0.1,"sampler":"euler"}'
        seed form /dev/null 0 'J{"image":{"image_url":{"url":"http://localhost:1/a.png"}},"flow_shift":2.5,"last-image":"data:image/png;base64,AA=="}'
        seed form /dev/null 0 'Tprompt\000a lake\000width\00096\000height\00064\000guidance_scale_2\0001e-3\000'
        seed form /dev/null 0 'Finput_reference\000abc\000frames\0009\000last_image\000\000'
        seed form /dev/null 0 'data:image/png;base64,iVBORw0KGgo=' ;;
    gguf) seed gguf tests/golden/gguf/small.gguf 20000 '' ;;
    http) # what fuzz_http.c's expand makes requests of; the first byte picks server and socket
        seed http /dev/null 0 '\0POST /v1/videos\3\5\7{"prompt":"a lake","size":"32x32","frames":5,"steps":1,"input_reference":"data:image/png;base64,\21"}'
        seed http /dev/null 0 '\1POST /v1/videos\3\4\6Idempotency-Key: k\r\n\17\22"prompt"\23a\r\n\16\22"input_reference"; filename="a.png"\23\20\r\n\22"size"\02332x32\r\n--bb--\r\n\bGET /v1/videos?limit=2&order=asc&after=\1\3\4\r\n'
        seed http /dev/null 0 '\2GET /v1/videos/\2/content\3Range: bytes=1-9\r\n\r\nGET /v1/videos/\2/dump/job.json\3If-None-Match: *\r\n\r\nHEAD /v1/videos/\2/content?variant=thumbnail\3\r\n'
        seed http /dev/null 0 '\0POST /v1/videos/\1/cancel\3\7\bDELETE /v1/videos/\1\3\r\nGET /v1/videos/\1\3\r\nGET /v1/videos/\2/report\3\r\n'
        seed http /dev/null 0 '\3GET /v1/videos/\1/events\3\4\r\n'
        seed http /dev/null 0 '\1GET /metrics\3\4\r\nGET /v1/defaults\3\4\r\nGET /openapi.json\3\r\nGET /\3\r\nGET /v1/models/model\3\4\r\nGET /v1/videos/\2/logs\3\4\r\nGET /v1/videos/\2/trace\3\4\r\nGET /v1/videos/\2/preview\3\4\r\nGET /ready\3\r\n'
        seed http /dev/null 0 '\0GET / HTTP/1.0\r\n\r\nPOST /v1/videos\3Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n'
        seed http /dev/null 0 '\0OPTIONS * HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n' ;;
    journal) # a row as the journal writes it; a good file with its version changed, and with nothing
        seed journal /dev/null 0 'R\0\14\14\140\0\0\0\0\0\0\0\0\10\11\200\14\14\14\14\14\6\12\14\13'
        seed journal /dev/null 0 'P\0\77\2'
        seed journal /dev/null 0 'P' ;;
    lora) # the first byte: L a file, N names with extents, else a user's words and a job's rows
        for file in tests/golden/lora-i2v/[ab]*.safetensors; do seed lora "$file" 12000 'L'; done
        seed lora /dev/null 0 'N\024\001transformer.blocks.0.attn1.to_q.lora_A.weight\nD\001transformer.blocks.0.attn1.to_q.lora_B.weight\n\041\000transformer.blocks.0.attn1.to_q.alpha\n'
        seed lora /dev/null 0 'N\024\002lora_unet_blocks_1_cross_attn_k_img.lora_down.weight\nD\002lora_unet_blocks_1_cross_attn_k_img.lora_up.weight\n\001\001lora_unet_blocks_1_cross_attn_k_img.alpha\n'
        seed lora /dev/null 0 'N\026\001diffusion_model.blocks.0.diff_m\n\026\001diffusion_model.head.diff_m\n\022\001diffusion_model.patch_embedding.diff_b\n\022\001diffusion_model.blocks.0.norm3.diff\n'
        seed lora /dev/null 0 'Ua.safetensors:0.5'
        seed lora /dev/null 0 'U0.5 0123456789abcdef /x/a b.safetensors\n-1 5 c' ;;
    model) # the first byte picks the reader
        for file in tests/golden/tiny-*/*/{transformer,.}/config.json tests/golden/*/transformer/config.json; do [ -f "$file" ] && seed model "$file" 20000 '\0'; done
        for kind in 1:text_encoder/config 2:image_encoder/config 3:image_processor/preprocessor_config 4:vae/config 5:scheduler/scheduler_config; do
            seed model "tests/golden/tiny-i2v/model/${kind#*:}.json" 20000 "\\${kind%%:*}"
        done ;;
    names) # pairs as they are recorded
        while IFS="$(printf '\t')" read -r _ kind file _; do seed names /dev/null 0 "$kind" && seed names /dev/null 0 "lora_unet_$file"; done < <(sed -n '1~9p' tests/golden/names/pairs.tsv) ;;
    picture) for file in tests/golden/pictures/{,kinds/}*.{png,jpg,webp} tests/golden/pictures/kinds/*.{avif,gif,j2k,jp2,tif,p?m}; do seed picture "$file" 20000 ''; done ;;
    prompt) for file in tests/golden/prompts/cases.json tests/golden/tiny-i2v/prompts.json; do seed prompt "$file" 3000 ''; done ;;
    pth) # pickles, which the target puts into a zip; the first byte is the zip's kind
        head -c 1500 tests/golden/pth/vae.data.pkl >$top/log/pickle
        seed pth tests/golden/pth/vae.data.pkl 20000 '\0' && seed pth $top/log/pickle 20000 '\1'
        seed pth /dev/null 0 '\0\200\002ccollections\nOrderedDict\n)R(X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\20tQK\0(K\4K\4t(K\4K\1t\211ccollections\nOrderedDict\n)RtRu.' ;;
    safetensors) # the header, and what of the tensors fits; an index
        for file in tests/golden/tiny-i2v/model/*/*.safetensors tests/golden/tiny-i2v/*.safetensors tests/golden/tiny-i2v/model/*/*.index.json; do
            seed safetensors "$file" 12000 ''
        done ;;
    unigram) # a tokenizer.json with its map cut out; a list of pieces
        seed unigram tests/golden/tokenizer/tokenizer.json 20000 ''
        seed unigram /dev/null 0 '{"unk_id":0,"byte_fallback":true,"vocab":[["<unk>",0],["</s>",-1.5],["<0x41>",-2],["<extra_id_0>",0],["a",-3]]}' ;;
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
    local program=$1 name=${1##*/fuzz_} status log words patience=20
    # a WebP of 70 bytes may have 170 megapixels: 2.7 s, and ten times that with the sanitizers
    [ "$name" = picture ] && patience=120
    log=$top/log/$name.log
    mkdir -p $top/corpus/"$name"
    seeds "$name"
    dictionary "$name"
    words=$top/log/$name.dict
    [ -s "$words" ] || words=
    "$program" -max_total_time="${FUZZ_SECONDS:-60}" -timeout="$patience" -rss_limit_mb=4096 -artifact_prefix=$top/findings/"$name"- \
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
