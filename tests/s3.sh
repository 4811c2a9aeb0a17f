#!/usr/bin/env bash
# s3.sh - makes build/s3/venv, the Python environment of tests/s3/server.py: a real HTTP server that
# speaks S3 (moto), for test_blobs and test_fleet. Silent when it is there; again when
# tests/s3/requirements.txt has changed.
set -u
cd "$(dirname "$0")/.." || exit 2
out=$PWD/build/s3 venv=$PWD/build/s3/venv
cmp -s tests/s3/requirements.txt "$venv/made-of" && exit 0
echo 's3: making build/s3/venv: moto' >&2
mkdir -p "$out" || exit 2
rm -rf "$venv"
{ python3 -m venv "$venv" && "$venv/bin/pip" install --disable-pip-version-check -r tests/s3/requirements.txt; } >"$out/pip.log" 2>&1 || {
    tail -n 5 "$out/pip.log" >&2
    echo 's3: the Python packages of tests/s3/requirements.txt cannot be installed, see above' >&2
    exit 1
}
cp tests/s3/requirements.txt "$venv/made-of"
