#!/usr/bin/env bash
# demo.sh - a video from the small model that ships, checked: demo.mp4, its report demo.json, and
# eight of its frames, demo.png.
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

rm -f demo.mp4 demo.json demo.png
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

cat <<END

$PWD/demo.mp4   the video: ${width}x$height, $frames frames at $fps fps, read back by ffprobe
$PWD/demo.png   eight of its frames
$PWD/demo.json  where each second went
END
