#!/usr/bin/env bash
# deploy.sh - conf/kubernetes and the Containerfile, as far as one machine without a cluster can try
# them. The last line is `N passed, N failed`.
#
#   tests/deploy.sh [PART...]     manifests image; default: both
#
#   manifests   Kubernetes' schemas; what the files name; the servers as they say, as processes
#   image       hadolint; as root also the image, built by buildah on a Debian of debootstrap's (no
#               registry of images is asked), and a job in it
#
#   SLUICE_BIN    where Sluice's programs are (default bin)
#   DEPLOY_SUITE  the Debian that the image is built on (default bookworm)
set -u
cd "$(dirname "$0")/.." || exit 2
PATH=$PATH:/usr/sbin:/sbin
out=$PWD/build/deploy venv=$PWD/build/deploy/venv bin=$(realpath "${SLUICE_BIN:-bin}") suite=${DEPLOY_SUITE:-bookworm}
parts=("$@")
[ $# -gt 0 ] || parts=(manifests image)
say() { echo "deploy: $*" >&2; }

mkdir -p "$out" || exit 2
: >"$out/result.log"
if ! cmp -s tests/deploy/requirements.txt "$venv/made-of"; then
    say 'making build/deploy/venv: kubernetes-validate, hadolint'
    rm -rf "$venv"
    { python3 -m venv "$venv" && "$venv/bin/pip" install --disable-pip-version-check -r tests/deploy/requirements.txt; } >"$out/pip.log" 2>&1 ||
        { tail -n 5 "$out/pip.log" >&2; say 'the Python packages of tests/deploy/requirements.txt cannot be installed, see above'; exit 1; }
    cp tests/deploy/requirements.txt "$venv/made-of"
fi
base=$(mktemp -d "${TMPDIR:-/tmp}/sluice-deploy.XXXXXX") || exit 2
image() { buildah --root "$base/storage" --runroot "$base/runroot" --storage-driver vfs "$@"; }
finish() {
    [ -d "$base/storage" ] && image rm --all >/dev/null 2>&1
    rm -rf "$base"
}
trap finish EXIT
trap 'exit 130' INT TERM
check() { # WHAT COMMAND...: its status; what it said is in NAME.log of the folder
    local what=$1 log=$out/${1//[^a-z0-9]/-}.log
    shift
    if "$@" >"$log" 2>&1 </dev/null; then echo "ok $what"; else echo "not ok $what: $(tail -n 3 "$log" | tr '\n' ' ' | cut -c 1-800)"; fi | tee -a "$out/result.log"
    grep -qxF "ok $what" "$out/result.log"
}

part_manifests() {
    mkdir "$base/manifests" || exit 2
    timeout -k 5 300 "$venv/bin/python" tests/deploy/manifests.py "$bin" "$base/manifests" 2>"$out/manifests.log" >"$out/told"
    local status=$?
    grep -E '^(ok|not ok) ' "$out/told" | tee -a "$out/result.log"
    [ $status -eq 0 ] || echo "not ok manifests: ran to its end: status $status: $(tail -n 2 "$out/manifests.log" | tr '\n' ' ')" | tee -a "$out/result.log"
}

build_image() { image build --isolation chroot --layers=false --build-arg BUILD=localhost/base --build-arg RUN=localhost/base \
    --build-arg COMMIT="$(git describe --always --dirty --abbrev=12 2>/dev/null)" -t localhost/sluice .; }
make_base() {
    debootstrap --variant=minbase "$suite" "$base/rootfs" http://deb.debian.org/debian &&
        tar -C "$base/rootfs" --exclude='./var/cache/apt/archives/*.deb' -cf "$base/rootfs.tar" . && rm -rf "$base/rootfs" &&
        from=$(image from scratch) && image add "$from" "$base/rootfs.tar" / && image commit --rm "$from" localhost/base && rm "$base/rootfs.tar"
}
in_image() { # OPTIONS... -- ARGUMENTS: the image's entry point
    local -a options=()
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    local container status
    container=$(image from localhost/sluice) || return 1
    image run --isolation chroot "${options[@]}" "$container" -- tini -- sluice "$@"
    status=$?
    image rm "$container" >/dev/null
    return $status
}
makes_a_video() {
    mkdir -m 777 "$base/made" &&
        in_image -v "$PWD/models/demo:/model:ro" -v "$PWD/tests/golden/tiny-i2v:/pictures:ro" -v "$base/made:/made" -- \
            run --model /model --image /pictures/i2v-96x64x9.png --prompt 'pan left' --width 96 --height 64 --frames 9 --steps 4 --seed 1 -o /made/a.mp4 &&
        "$bin/sluice" run --model models/demo --image tests/golden/tiny-i2v/i2v-96x64x9.png --prompt 'pan left' --width 96 --height 64 --frames 9 --steps 4 --seed 1 -o "$base/b.mp4" &&
        ffprobe -v error "$base/made/a.mp4" && [ "$(stat -c %u "$base/made/a.mp4")" = 10001 ]
}
part_image() {
    check 'Containerfile: hadolint' "$venv/bin/hadolint" Containerfile
    if [ "$(id -u)" -ne 0 ]; then say 'not root: the image is not built'; return; fi
    for program in buildah debootstrap; do
        command -v $program >/dev/null || { say "no $program here: the image is not built"; return; }
    done
    check "image: a base, Debian $suite" make_base || return
    check 'image: builds' build_image || return
    check 'image: says its version' in_image -- --version
    check 'image: makes a video of the demo model, as user 10001' makes_a_video
    image images --format '{{.Name}} {{.Size}}' | sed 's/^/# /'
}

for part in "${parts[@]}"; do
    case $part in
    manifests | image) "part_$part" ;;
    *) say "no part $part, want manifests or image"; exit 2 ;;
    esac
done
passed=$(grep -c '^ok ' "$out/result.log")
failed=$(grep -c '^not ok ' "$out/result.log")
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
