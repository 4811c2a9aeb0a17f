#!/usr/bin/env bash
# demo.sh - a video from the small model that ships, checked: demo.mp4, its report demo.json, and
# eight of its frames, demo.png. Then the same in 4 steps with the model's LoRA, demo-4steps.mp4, and
# in the same pipeline without it again: the bytes of demo.mp4.
#
#   tests/demo.sh
#
#   DEMO_IMAGE=FILE    another picture
#   DEMO_PROMPT=TEXT   another prompt
#   SLUICE_BIN=DIR     where the programs are (default bin)
set -u
cd "$(dirname "$0")/.." || exit 2
width=320 height=192 frames=33 fps=16
golden=tests/golden/tiny-i2v model=models/demo

fail() { echo "demo: $*" >&2; exit 1; }

# The trained model if all of it is here, whose sluice.json says the rest, else the random one of
# the tests: the same path, a video of noise.
image=tests/demo-model/pictures/picosdeeuropa.jpg options=()
for part in transformer vae text_encoder image_encoder; do
    ls $model/$part/*.safetensors >/dev/null 2>&1 && continue
    model=$golden/model image=$golden/i2v-96x64x9.png options=(--frames "$frames" --steps 12 --guidance 1)
    break
done
prompt='The camera pans slowly to the left.'
image=${DEMO_IMAGE:-$image} prompt=${DEMO_PROMPT:-$prompt}

rm -f demo.mp4 demo.json demo.png demo-4steps.mp4
echo "model $model, picture $image, prompt \"$prompt\""
"${SLUICE_BIN:-bin}/sluice" run --model $model --image "$image" --prompt "$prompt" --width $width --height $height ${options[@]+"${options[@]}"} \
    --seed 1 -o demo.mp4 --json demo.json || fail "sluice run ended with status $?"

pick=
for i in 0 1 2 3 4 5 6 7; do pick+="+eq(n\\,$((i * (frames - 1) / 7)))"; done
ffmpeg -v error -y -i demo.mp4 -vf "select=${pick#+},tile=4x2:padding=4" -frames:v 1 demo.png </dev/null || fail "ffmpeg made no contact sheet"

# What the file says and what is in it: the frames are decoded and counted.
found=$(ffprobe -v error -select_streams v -count_frames -show_entries stream=width,height,r_frame_rate,nb_read_frames -of csv=p=0 demo.mp4) || fail "ffprobe cannot read demo.mp4"
[ "$found" = "$width,$height,$fps/1,$frames" ] || fail "demo.mp4 has width,height,fps,frames $found, want $width,$height,$fps/1,$frames"

figure() { sed -n "s/^  \"$1\": \([-0-9.e+]*\),\{0,1\}$/\1/p" demo.json; }
awk -v u="$(figure unaccounted)" -v t="$(figure total)" 'BEGIN { exit !(t > 0 && u >= 0 && u < 0.01 * t) }' ||
    fail "demo.json: unaccounted $(figure unaccounted) s of $(figure total) s, want under 1 %"

# A LoRA on and off in one pipeline: a job in 4 steps with it, then the first one again.
lora=$model/lora/4steps.safetensors
[ -e "$lora" ] || fail "no $lora"
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
text() { local s=${1//\\/\\\\}; printf '"%s"' "${s//\"/\\\"}"; } # a JSON string of one line
job() { printf '{"image": %s, "prompt": %s, "width": %d, "height": %d, "seed": 1, "output": %s%s}\n' \
    "$(text "$image")" "$(text "$prompt")" $width $height "$(text "$1")" "${2:-}"; }
{ job demo-4steps.mp4 ", \"lora\": $(text "$lora"), \"sampler\": \"lightx2v\""; job "$work/again.mp4"; } >"$work/jobs.jsonl"
echo "in 4 steps with $lora, then without it again"
"${SLUICE_BIN:-bin}/sluice" run --model $model --jobs "$work/jobs.jsonl" || fail "sluice run with the LoRA ended with status $?"
cmp -s "$work/again.mp4" demo.mp4 || fail "without the LoRA again the video is not demo.mp4"
cmp -s demo-4steps.mp4 demo.mp4 && fail "with the LoRA the video is demo.mp4"

cat <<END

$PWD/demo.mp4   the video: ${width}x$height, $frames frames at $fps fps, read back by ffprobe
$PWD/demo.png   eight of its frames
$PWD/demo.json  where each second went
END
[ ! -e demo-4steps.mp4 ] || echo "$PWD/demo-4steps.mp4  the same in 4 steps, with the model's LoRA; taken off again, it left no trace"
