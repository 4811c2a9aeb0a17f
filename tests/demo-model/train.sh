#!/bin/sh
# Everything in one go, bounded by SECONDS in all: the VAE, then (if its clips reach 24 dB) the
# rest. usage: train.sh DATA OUT SECONDS [train_dit options]
data=$1 out=$2 total=$3
shift 3
here=$(dirname "$0")
start=$(date +%s)
python3 "$here/train_vae.py" --data "$data" --out "$out" --minutes 1.6 2.1 || exit 1
awk -v p="$(cat "$out/vae.db")" 'BEGIN { exit !(p > 24) }' || { echo "VAE too weak"; exit 1; }
rm -f "$out/vae.db"
left=$((total - ($(date +%s) - start) - 50))
python3 "$here/train_dit.py" --data "$data" --vae "$out" --out "$out/dit" --minutes "$(echo "$left" | awk '{ print $1 / 60 }')" "$@"
