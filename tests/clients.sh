#!/usr/bin/env bash
# clients.sh - sluice serve with the clients that people have: OpenAI's package, curl, a browser,
# Prometheus, nginx, a fuzzer of the description, systemd's checks; and jobs' files in a real S3
# server. The last line is `N passed, N failed`.
#
#   tests/clients.sh [PART...]     openai curl metrics nginx openapi page unit fleet s3; default: all
#
#   SLUICE_BIN        where Sluice's programs are (default bin)
#   TESTS_BIN         where test_blobs, test_fleet and test_fleet_store are, for s3
#   CLIENTS_SECONDS   of the fuzzer (default 45)
#
# What each part printed, and the page's pictures, stay in build/clients. Everything listens on free
# ports of the loopback, lies in a folder of its own, and is ended at the end.
set -u
cd "$(dirname "$0")/.." || exit 2
PATH=$PATH:/usr/sbin:/sbin
out=$PWD/build/clients venv=$PWD/build/clients/venv bin=$(realpath "${SLUICE_BIN:-bin}") || exit 2
picture=$PWD/tests/demo-model/pictures/sunset.jpg model=$PWD/models/demo
token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
parts=("$@")
[ $# -gt 0 ] || parts=(unit openai curl metrics nginx openapi page fleet s3)
say() { echo "clients: $*" >&2; }

mkdir -p "$out" || exit 2
rm -f "$out"/*.log "$out"/*.png
if ! cmp -s tests/clients/requirements.txt "$venv/made-of"; then
    say 'making build/clients/venv: openai, schemathesis, websocket-client'
    rm -rf "$venv"
    { python3 -m venv "$venv" && "$venv/bin/pip" install --disable-pip-version-check -r tests/clients/requirements.txt; } >"$out/pip.log" 2>&1 ||
        { tail -n 5 "$out/pip.log" >&2; say 'the Python packages of tests/clients/requirements.txt cannot be installed, see above'; exit 1; }
    cp tests/clients/requirements.txt "$venv/made-of"
fi

# Readable for an nginx without rights; secrets in it are not.
base=$(mktemp -d /tmp/sluice-clients.XXXXXX) && chmod 755 "$base" || exit 2
running=()
# The last that was begun goes first: servers before the Redis that they ask.
finish() {
    local n pid i
    for ((n = ${#running[@]} - 1; n >= 0; n--)); do
        pid=${running[n]}
        kill "$pid" 2>/dev/null
        for ((i = 0; i < 100; i++)); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -9 "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    done
    running=()
}
# A server that the page's part began is not in the list, if that part was ended; its folder names it.
trap 'finish; pkill -9 -f "$base"; rm -rf "$base"' EXIT
trap 'exit 130' INT TERM

ok() { echo "ok $1: $2" | tee -a "$out/result.log"; }
not_ok() { echo "not ok $1: $2: $(tr '\n' ' ' <<<"$3" | cut -c 1-1000)" | tee -a "$out/result.log"; }
check() { # GROUP WHAT COMMAND...: its status
    local group=$1 what=$2 said
    shift 2
    if said=$("$@" 2>&1); then ok "$group" "$what"; else not_ok "$group" "$what" "${said:-status not 0}"; fi
}
# A program that prints ok and not ok itself. Its end without either is a failure, too.
told() { # GROUP LIMIT COMMAND...
    local group=$1 limit=$2 status
    shift 2
    timeout -k 5 "$limit" "$@" >"$out/told" 2>"$out/$group.log" </dev/null
    status=$?
    grep -E '^(ok|not ok) ' "$out/told" | tee -a "$out/result.log"
    grep -vE '^(ok|not ok) ' "$out/told" >>"$out/$group.log"
    if grep -q '^not ok ' "$out/told" || { [ $status -eq 0 ] && grep -q '^ok ' "$out/told"; }; then return; fi
    not_ok "$group" 'ran to its end' "status $status (124: past $limit s): $(tail -n 3 "$out/$group.log")"
}
# Is there such a port? Waits for what $1 was told to open.
opens() { # WHAT URL
    local i
    for ((i = 0; i < 150; i++)); do curl -s -o /dev/null -m 2 "$2" && return 0; sleep 0.2; done
    not_ok "$1" 'begins' "nothing answers at $2 within 30 s: $(tail -n 3 "$out/$1.log" 2>/dev/null)"
    return 1
}
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# ---- servers ----
url=
serve() { # NAME [OPTIONS]: begins a server, sets url
    local name=$1 i
    shift
    : >"$base/$name.line"
    "$bin/sluice" serve --model "$model" --state "$base/state-$name" --listen 127.0.0.1:0 "$@" >"$base/$name.line" 2>"$out/serve-$name.log" </dev/null &
    running+=($!)
    disown # the page's part kills it, which bash need not tell
    for ((i = 0; i < 600; i++)); do
        url=$(sed -n 's/.* at \(http:[^ ]*\).*/\1/p' "$base/$name.line")
        [ -n "$url" ] && return 0
        kill -0 "${running[-1]}" 2>/dev/null || break
        sleep 0.1
    done
    not_ok serve "begins ($name)" "$(tail -n 3 "$out/serve-$name.log")"
    return 1
}
tokens_url=
with_tokens() { # the server with tokens, begun once
    [ -n "$tokens_url" ] && { url=$tokens_url; return 0; }
    (umask 077; echo "clients $token" >"$base/tokens")
    # What the fuzzer makes of a job is to stay small, and to be parked soon at the end.
    echo 'limits: { pixels = 65536; frames = 33; }; supervise: { drain_s = 2; };' >"$base/serve.cfg"
    serve tokens --tokens "$base/tokens" --conf "$base/serve.cfg" || return 1
    tokens_url=$url
}

# ---- parts ----
part_unit() {
    sed "s|/usr/local/bin/sluice|$bin/sluice|" conf/sluice.service >"$base/sluice.service"
    check unit 'systemd-analyze verify' verify_unit "$base/sluice.service"
    check unit 'systemd-analyze security: at most 1.5 of 10' systemd-analyze security --offline=yes --no-pager --threshold=15 "$base/sluice.service"
    check unit 'promtool check rules' promtool check rules conf/sluice-rules.yml
    check unit 'promtool test rules' promtool test rules tests/clients/rules-test.yml
    check unit 'promtool check config' promtool check config --syntax-only conf/prometheus.yml
}
# Complaints of other units of the machine are none of ours.
verify_unit() {
    local said status
    said=$(systemd-analyze verify "$1" 2>&1)
    status=$?
    echo "$said"
    [ $status -eq 0 ] && ! grep -qF sluice.service <<<"$said"
}

part_openai() { with_tokens && told openai 120 "$venv/bin/python" tests/clients/videos.py "$url" "$token" "$picture"; }
part_curl() { with_tokens && told curl 120 tests/clients/http.sh curl "$url" "$token" "$picture"; }

part_metrics() {
    with_tokens || return
    local port i
    tests/clients/http.sh metrics "$url" "$token" "$picture" >/dev/null # so that there is something to count
    curl -sS -m 20 -H "Authorization: Bearer $token" "$url/metrics" >"$out/metrics.txt"
    check metrics 'promtool check metrics' check_metrics "$out/metrics.txt"

    (umask 077; echo "$token" >"$base/scrape.token")
    sed -e "s|/etc/prometheus/sluice.token|$base/scrape.token|" -e "s|127.0.0.1:8080|${url#http://}|" -e 's/15s/1s/' conf/prometheus.yml >"$base/prometheus.yml"
    cp conf/sluice-rules.yml "$base/"
    check metrics 'promtool check config' promtool check config "$base/prometheus.yml"
    port=$(free_port)
    prometheus --config.file="$base/prometheus.yml" --storage.tsdb.path="$base/tsdb" --web.listen-address="127.0.0.1:$port" --log.level=warn >"$out/prometheus.log" 2>&1 </dev/null &
    running+=($!)
    opens prometheus "http://127.0.0.1:$port/-/ready" || return
    for ((i = 0; i < 100; i++)); do [ "$(query "$port" 'up{job="sluice"}')" = 1 ] && break; sleep 0.2; done
    check metrics 'Prometheus scrapes: up is 1' scraped "$port" 'up{job="sluice"}' 1
    check metrics 'and is ready' scraped "$port" sluice_ready 1
    check metrics 'and has every figure of the page' every_figure "$port"
    check metrics 'steps were counted' test "$(query "$port" 'sluice_steps_total')" -gt 0
    check metrics 'the rules are evaluated, and none fires' quiet "$port"
}
check_metrics() {
    local said status
    said=$(promtool check metrics <"$1" 2>&1)
    status=$?
    echo "$said"
    [ $status -eq 0 ] && [ -z "$said" ] && grep -q '^sluice_' "$1"
}
query() { curl -sS -m 10 -G --data-urlencode "query=$2" "http://127.0.0.1:$1/api/v1/query" | jq -r '.data.result[0].value[1] // empty'; }
scraped() { local found; found=$(query "$1" "$2"); [ "$found" = "$3" ] || { echo "$2 is \"$found\", want $3"; false; }; }
every_figure() {
    local want found
    want=$(sed -n 's/^\(sluice_[a-z_]*\).*/\1/p' "$out/metrics.txt" | sort -u)
    found=$(curl -sS -m 10 "http://127.0.0.1:$1/api/v1/label/__name__/values" | jq -r '.data[]' | grep ^sluice_ | sort -u)
    [ "$(wc -l <<<"$want")" -gt 15 ] || { echo "$(wc -l <<<"$want") figures, want more than 15"; return 1; }
    want=$(comm -23 <(echo "$want") <(echo "$found"))
    [ -z "$want" ] || { echo "not there: $want"; false; }
}
quiet() {
    local rules
    rules=$(curl -sS -m 10 "http://127.0.0.1:$1/api/v1/rules")
    [ "$(jq '[.data.groups[].rules[] | select(.health == "err" or .state == "firing")] | length' <<<"$rules")" = 0 ] || { echo "$rules"; false; }
}

part_nginx() {
    with_tokens || return
    local port front=$base/front as=()
    port=$(free_port)
    mkdir -p "$front/tmp"
    sed -e "s/127\.0\.0\.1:8080/${url#http://}/" -e "s/127\.0\.0\.1:8081/127.0.0.1:$port/" conf/nginx.conf >"$front/nginx.conf"
    if [ "$(id -u)" -eq 0 ]; then # nginx itself is to run without rights
        as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
        chown -R 65534:65534 "$front"
    fi
    : >"$out/nginx.log"
    check nginx 'nginx -t' ${as[@]+"${as[@]}"} nginx -t -p "$front" -c "$front/nginx.conf" -g 'daemon off;'
    ${as[@]+"${as[@]}"} nginx -p "$front" -c "$front/nginx.conf" -g 'daemon off;' >>"$out/nginx.log" 2>&1 </dev/null &
    running+=($!)
    opens nginx "http://127.0.0.1:$port/health" || return
    told 'nginx' 120 tests/clients/http.sh nginx "http://127.0.0.1:$port" "$token" "$picture"
}

accepted() { curl -sS -m 20 -H "Authorization: Bearer $token" "$url/metrics" | sed -n 's/^sluice_jobs_accepted_total //p' | grep . || echo 0; }
part_openapi() {
    with_tokens || return
    local before
    before=$(accepted)
    # With an example whose picture is one: no fuzzer draws a PNG.
    { base64 -w 0 tests/golden/tiny-i2v/i2v-96x64x9.png; } >"$base/png"
    curl -sS -m 20 "$url/openapi.json" | jq --rawfile png "$base/png" '.paths["/v1/videos"].post.requestBody.content["application/json"].example =
        {prompt: "pan left", size: "96x64", frames: 5, steps: 2, input_reference: ("data:image/png;base64," + $png)}' >"$out/openapi.json"
    (cd "$base" && timeout -k 5 $((${CLIENTS_SECONDS:-45} + 120)) "$venv/bin/schemathesis" --no-color run "$out/openapi.json" --url "$url" -H "Authorization: Bearer $token" \
        --max-time "${CLIENTS_SECONDS:-45}" --max-examples 40 --seed 1 --request-timeout 20 --phases examples,coverage,fuzzing --generation-database none \
        --checks not_a_server_error,content_type_conformance,response_schema_conformance,status_code_conformance --suppress-health-check all --warnings off \
        --output-sanitize true) >"$out/openapi.log" 2>&1 </dev/null
    case $? in
    0) ok openapi "schemathesis: $(grep -aE 'generated|test cases' "$out/openapi.log" | tail -n 1 | sed 's/^ *//')" ;;
    *) not_ok openapi 'schemathesis: answers as described, none of them 5xx' "see build/clients/openapi.log: $(grep -aE '^ *- |Server error|Undocumented|violates' "$out/openapi.log" | sort | uniq -c | head -n 8)" ;;
    esac
    check openapi 'the server is as well as before' curl -sS -f -m 20 -o /dev/null "$url/ready"
    check openapi 'some of its jobs were taken' test "$(accepted)" -gt "$before"
}

no_browser() {
    command -v chromium >/dev/null || command -v google-chrome >/dev/null && return 1
    say "no chromium: $1 is left out (Ubuntu has it as a snap only)"
    skipped=$((skipped + 1))
}
part_page() {
    no_browser 'the page' && return
    serve open && CLIENTS_SERVER=${running[-1]} told page 300 "$venv/bin/python" tests/clients/page.py "$url" "$picture" "$out"
    with_tokens && told page-token 120 "$venv/bin/python" tests/clients/page.py "$url" "$picture" "$out" "$token"
}

# The tests of the files that servers share, with a store that speaks S3.
part_s3() {
    local name said
    if ! said=$(tests/s3.sh 2>&1); then not_ok s3 'an S3 server can be had' "$said"; return; fi
    for name in test_blobs test_fleet test_fleet_store; do
        SLUICE_FLEET_STORE=s3 timeout -k 5 400 "${TESTS_BIN:-build/release/tests}/$name" >"$out/s3-$name.log" 2>&1 </dev/null ||
            echo "[  FAILED  ] $name: status $?" >>"$out/s3-$name.log"
        while read -r said; do ok s3 "$name: $said"; done < <(sed -n 's/^\[       OK \] //p' "$out/s3-$name.log")
        while read -r said; do not_ok s3 "$name: $said" "see build/clients/s3-$name.log"; done < <(sed -n 's/^\[  FAILED  \] //p' "$out/s3-$name.log" | grep -v 'test(s)' | sort -u)
    done
}

# A front end without weights, and a worker that takes small jobs only, at a Redis of their own.
part_fleet() {
    local redis queue=$base/redis bare=$base/bare/demo share worker i
    redis=$(command -v redis-server || command -v redis-check-rdb) || { not_ok fleet 'a Redis is there' 'neither redis-server nor redis-check-rdb is on the PATH'; return; }
    mkdir -p "$queue" "$bare"
    cp -r "$model/." "$bare" && find "$bare" -name '*.safetensors' -delete
    (exec -a redis-server "$redis" --port 0 --unixsocket "$queue/sock" --dir "$queue" --save '' --appendonly yes) >"$out/redis.log" 2>&1 </dev/null &
    running+=($!)
    for ((i = 0; i < 100; i++)); do [ -S "$queue/sock" ] && break; sleep 0.1; done
    share=(--queue "unix://$queue/sock" --blobs "$base/blobs")
    echo 'queue: { lease_s = 2; }; model: { random = 1; };' >"$base/front.cfg"
    echo 'queue: { lease_s = 2; }; limits: { pixels = 65536; frames = 33; };' >"$base/small.cfg"
    echo 'queue: { lease_s = 2; };' >"$base/large.cfg"
    serve worker "${share[@]}" --role worker --conf "$base/small.cfg" || return
    worker=${running[-1]}
    model=$bare serve front "${share[@]}" --role front --conf "$base/front.cfg" || return
    curl -sS -m 20 "$url/metrics" >"$out/metrics-fleet.txt"
    check fleet 'promtool check metrics' check_metrics "$out/metrics-fleet.txt"
    check fleet 'gauges of each server' test "$(grep -c '^sluice_fleet_jobs{' "$out/metrics-fleet.txt")" = 2
    no_browser "the fleet's page" && return
    CLIENTS_WORKER=$worker CLIENTS_LARGE="$base/large.cfg $base/state-large" told fleet 400 "$venv/bin/python" tests/clients/fleet.py "$url" "$picture" "$out" "$queue/sock"
    serve one && told fleet-one 120 "$venv/bin/python" tests/clients/fleet.py "$url" "$picture" "$out" --one
    with_tokens && told fleet-token 120 "$venv/bin/python" tests/clients/fleet.py "$url" "$picture" "$out" --token "$token"
}

clean() { ! grep -E ' error: ' "$1"; }
none_left() { ! pgrep -af "$base"; }

skipped=0
: >"$out/result.log"
for part in "${parts[@]}"; do
    if ! declare -F "part_$part" >/dev/null; then say "unknown part $part, want some of unit openai curl metrics nginx openapi page fleet s3"; exit 2; fi
    t0=$(date +%s)
    "part_$part"
    echo "# $part: $(($(date +%s) - t0)) s"
done
# SIGTERM is enough: nothing of the servers is left, and none logged an error.
finish
check serve 'no process is left' none_left
for log in "$out"/serve-*.log; do
    [ -f "$log" ] || continue
    check serve "no error in ${log##*/}" clean "$log"
done
rm -f "$out/told"
passed=$(grep -c '^ok ' "$out/result.log") failed=$(grep -c '^not ok ' "$out/result.log")
[ $skipped -eq 0 ] || echo "$skipped skipped"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
