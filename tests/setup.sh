#!/usr/bin/env bash
# setup.sh - finds the packages that the build and the tests need and that are missing, and installs
# them or names them.
#
#   tests/setup.sh [--fuzz|--clients|--python|--fleet|--deploy]
#     --fuzz      also clang and its sanitizer runtime, for `make fuzz`
#     --clients   also a browser, nginx, Prometheus and what else `make test-clients` has. Where
#                 systemd runs, Debian starts the two as services, on ports 80 and 9090.
#     --python    also Python with its virtual environments, for `make test-python`, `test-fleet`
#     --fleet     also Slurm's daemons and munge, for `make test-fleet`. Where systemd runs, Debian
#                 starts munge as a service; Slurm's wait for settings that nobody writes.
#     --deploy    also Python as above, and what builds images, for `make test-deploy`
#
# Silent when nothing is missing. On Debian and Ubuntu it installs what is missing when it is root
# or sudo asks for no password; otherwise it prints the one command to type and ends with 1.
# Elsewhere it asks pkg-config and names the libraries.
set -u

# what pkg-config calls it | what Debian and Ubuntu call it
libraries='libzmq|libzmq3-dev
libavcodec|libavcodec-dev
libavfilter|libavfilter-dev
libavformat|libavformat-dev
libswscale|libswscale-dev
libavutil|libavutil-dev
libconfig|libconfig-dev
jansson|libjansson-dev
openblas|libopenblas-openmp-dev
sentencepiece|libsentencepiece-dev
cmocka|libcmocka-dev
libutf8proc|libutf8proc-dev
libmicrohttpd|libmicrohttpd-dev
libcurl|libcurl4-openssl-dev
sqlite3|libsqlite3-dev
hiredis|libhiredis-dev
libjpeg|libjpeg-dev
zlib|zlib1g-dev'
programs='cc|build-essential
c++|build-essential
make|build-essential
pkg-config|pkg-config
ffmpeg|ffmpeg
ffprobe|ffmpeg
sqlite3|sqlite3
curl|curl
groff|groff-base
redis-cli|redis-tools
ip|iproute2'
clients='chromium|chromium
nginx|nginx-light
prometheus|prometheus
promtool|prometheus
jq|jq
systemd-analyze|systemd
setpriv|util-linux
python3|python3'

fleet='slurmctld|slurmctld
slurmd|slurmd
sbatch|slurm-client
munged|munge'

say() { echo "setup: $*" >&2; }

fuzz=
case "${1-}" in
'') ;;
--fuzz) fuzz=1 ;;
--clients)
    PATH=$PATH:/usr/sbin:/sbin # nginx
    # Ubuntu's chromium is a snap, which wants a running snapd: tests/clients.sh goes without.
    grep -qs '^ID=ubuntu' /etc/os-release && clients=${clients#*$'\n'}
    programs+=$'\n'$clients
    ;;
--python) programs+=$'\npython3|python3' ;;
--fleet)
    PATH=$PATH:/usr/sbin:/sbin
    programs+=$'\n'$fleet
    ;;
--deploy)
    PATH=$PATH:/usr/sbin:/sbin
    programs+=$'\npython3|python3\nbuildah|buildah\ndebootstrap|debootstrap'
    ;;
*) say "unknown option $1, want --fuzz, --clients, --python, --fleet, --deploy or nothing"; exit 2 ;;
esac

missing=()
add() { case " ${missing[*]-} " in *" $1 "*) ;; *) missing+=("$1") ;; esac }

missing_programs() { # field 1: as the program is called, 2: as its package is
    local line list=$programs
    [ -n "$fuzz" ] && list+=$'\nclang|clang'
    while IFS= read -r line; do
        command -v "${line%|*}" >/dev/null || add "$(cut -d'|' -f"$1" <<<"$line")"
    done <<<"$list"
}

# ---- not Debian, not Ubuntu: say what is missing ----
if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    missing_programs 1
    while IFS= read -r line; do
        pkg-config --exists "${line%|*}" 2>/dev/null || add "${line%|*}"
    done <<<"$libraries"
    [ ${#missing[@]} -eq 0 ] && exit 0
    say "missing: ${missing[*]} (programs, and libraries by their pkg-config names). Install them with your system's package manager."
    exit 1
fi

# ---- Debian, Ubuntu ----
missing_programs 2
mapfile -t wanted < <(cut -d'|' -f2 <<<"$libraries")
if [ -n "$fuzz" ]; then
    version=$(clang -dumpversion 2>/dev/null || apt-cache depends clang 2>/dev/null | sed -n 's/.*Depends: clang-\([0-9]*\)$/\1/p')
    if [ -z "$version" ]; then # no package lists yet
        # shellcheck disable=SC1091
        case "$(. /etc/os-release && echo "$ID $VERSION_ID")" in
        'ubuntu 24.04') version=18 ;;
        *) version=14 ;;
        esac
    fi
    wanted+=("libclang-rt-${version%%.*}-dev")
fi
installed=$(dpkg-query -W -f='${Package} ${db:Status-Status}\n' "${wanted[@]}" 2>/dev/null)
for package in "${wanted[@]}"; do
    case $'\n'"$installed"$'\n' in *$'\n'"$package installed"$'\n'*) ;; *) add "$package" ;; esac
done
# Debian has the two modules apart from its Python.
case "${1-}" in
--clients | --python | --deploy) python3 -c 'import ensurepip, venv' 2>/dev/null || add python3-venv ;;
esac
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ]; then
    as_root=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=sudo
else
    say "missing packages, and no right to install them. Type:"
    echo "    sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
    exit 1
fi

log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
apt() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 "$@" >>"$log" 2>&1 </dev/null; }
say "installing ${missing[*]}"
if ! apt update; then
    tail -n 20 "$log" >&2
    say "apt-get update failed; going on with the lists that are there"
fi
if ! apt install -y --no-install-recommends "${missing[@]}"; then
    tail -n 20 "$log" >&2
    say "apt-get could not install ${missing[*]}: see above"
    exit 1
fi
