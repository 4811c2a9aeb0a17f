#!/usr/bin/env bash
# http.sh - the interface as curl sees it, straight or through a proxy.
#
#   tests/clients/http.sh GROUP URL TOKEN PICTURE
#
# Prints `ok GROUP: what` or `not ok GROUP: what: why` a part.
set -u
group=$1 url=$2 picture=$4
folder=$(mktemp -d) || exit 2
trap 'rm -rf "$folder"' EXIT
printf 'header = "Authorization: Bearer %s"\n' "$3" >"$folder/token"
bad=0 code='' why=''

# Body to $folder/body, head to $folder/head, status to $code.
ask() { code=$(curl -sS -m 60 -K "$folder/token" -o "$folder/body" -D "$folder/head" -w '%{http_code}' "$@" 2>"$folder/error") || why="curl: $(cat "$folder/error")"; }
head_of() { tr -d '\r' <"$folder/head" | sed -n "s/^$1: *//Ip" | tail -n 1; }
of() { jq -r "$1" <"$folder/body" 2>/dev/null; }
is() { [ "$1" = "$2" ] || { [ -n "$why" ] || why="$3 is \"$1\", want \"$2\""; false; }; }
# shellcheck disable=SC2254 # $2 is a pattern
like() { case $1 in $2) ;; *) [ -n "$why" ] || why="$3 is \"$1\", want $2"; false ;; esac }
part() { # the status of the command before
    if [ "$1" -eq 0 ]; then echo "ok $group: $2"; else bad=1; echo "not ok $group: $2: ${why:-no reason given} (HTTP $code: $(head -c 300 "$folder/body" 2>/dev/null | tr -d '\0\n'))"; fi
    why=''
}
completed() { # waits for job $1
    local i
    for ((i = 0; i < 300; i++)); do
        ask "$url/v1/videos/$1"
        case $(of .status) in completed) return 0 ;; failed) why="the job failed: $(of .error.message)"; return 1 ;; esac
        sleep 0.2
    done
    why='the job did not end within 60 s'
    return 1
}
small=(-F size=160x96 -F frames=5 -F steps=2)

ask "$url/ready" && is "$code" 200 status
part $? 'ready'

ask "$url/v1/videos" --form-string 'prompt=pan left, "slowly"; ä' -F "input_reference=@$picture" "${small[@]}" -F seed=3 -H "Idempotency-Key: once-$$-$group" && is "$code" 200 status && is "$(of .prompt)" 'pan left, "slowly"; ä' prompt
part $? 'multipart, with a picture as a file'
one=$(of .id)
ask "$url/v1/videos" --form-string 'prompt=pan left, "slowly"; ä' -F "input_reference=@$picture" "${small[@]}" -F seed=3 -H "Idempotency-Key: once-$$-$group" && is "$code" 200 status && is "$(of .id)" "$one" id
part $? 'the same Idempotency-Key again: the same job'

{ printf '{"prompt":"pan right","size":"160x96","frames":5,"steps":2,"seed":3,"input_reference":"data:image/jpeg;base64,%s"}' "$(base64 -w 0 "$picture")"; } >"$folder/request"
ask "$url/v1/videos" -H 'Content-Type: application/json' --data-binary "@$folder/request" && is "$code" 200 status && is "$(of .seed)" 3 seed
part $? 'JSON, with a picture as a data URL'
two=$(of .id)

curl -sS -N -m 120 -K "$folder/token" "$url/v1/videos/$two/events" >"$folder/events" 2>"$folder/error" || why="curl: $(cat "$folder/error")"
is "$why" '' why && is "$(grep -c '^event: step' "$folder/events" | sed 's/^[1-9][0-9]*$/some/')" some 'the number of steps' &&
    is "$(sed -n 's/^data: //p' "$folder/events" | tail -n 1 | jq -r .status)" completed 'the last state'
part $? 'events: steps, and the end after the last state'
completed "$one" && is "$(of .progress)" 100 progress
part $? 'progress is 100 at the end'

ask "$url/v1/videos/$one/content" && is "$code" 200 status && is "$(head_of content-type)" video/mp4 Content-Type &&
    cp "$folder/body" "$folder/video" && is "$(ffprobe -v error -select_streams v -count_frames -show_entries stream=width,height,nb_read_frames -of csv=p=0 "$folder/video")" 160,96,5 'the video'
part $? 'the video, read back by ffprobe'
size=$(wc -c <"$folder/video") tag=$(head_of etag)

ask -I "$url/v1/videos/$one/content" && is "$code" 200 status && is "$(head_of content-length)" "$size" Content-Length && is "$(head_of etag)" "$tag" ETag
part $? 'HEAD has the length and the ETag, and no body'
ask -H "If-None-Match: $tag" "$url/v1/videos/$one/content" && is "$code" 304 status
part $? 'If-None-Match: 304'
ask -r 100-199 "$url/v1/videos/$one/content" && is "$code" 206 status && is "$(head_of content-range)" "bytes 100-199/$size" Content-Range &&
    is "$(cmp <(tail -c +101 "$folder/video" | head -c 100) "$folder/body" && echo same)" same 'the range'
part $? 'a range of the middle'
ask -r -50 "$url/v1/videos/$one/content" && is "$code" 206 status && is "$(cmp <(tail -c 50 "$folder/video") "$folder/body" && echo same)" same 'the end'
part $? 'a range of the end'
ask -r "$size-" "$url/v1/videos/$one/content" && is "$code" 416 status
part $? 'a range past the end: 416'
ask -r 100-199 -H 'If-Range: "another"' "$url/v1/videos/$one/content" && is "$code" 200 status && is "$(cmp "$folder/video" "$folder/body" && echo same)" same 'the video'
part $? 'If-Range of another file: all of it'

for variant in thumbnail spritesheet; do
    ask "$url/v1/videos/$one/content?variant=$variant" && is "$code" 200 status && is "$(head_of content-type)" image/jpeg Content-Type && is "$(head -c 3 "$folder/body" | od -An -tx1 | tr -d ' ')" ffd8ff 'its beginning'
    part $? "$variant"
done
for what in report trace; do
    ask "$url/v1/videos/$one/$what" && is "$code" 200 status && is "$(of 'type')" object "$what"
    part $? "$what"
done
ask "$url/v1/videos/$one/logs" && is "$code" 200 status && is "$(jq -s 'length > 0 and all(.[]; .message)' <"$folder/body")" true 'every line'
part $? 'logs: JSON lines'

ask "$url/v1/videos" -F prompt=x -F "input_reference=@$picture" -F framse=5 && is "$code" 400 status && is "$(of .error.param)" framse param && like "$(of .error.message)" '*frames*' message
part $? 'an unknown field: 400, with the nearest name'
ask "$url/v1/videos" -H 'Content-Type: application/json' -d '{"prompt":' && is "$code" 400 status && is "$(of .error.type)" invalid_request_error type
part $? 'broken JSON: 400'
ask "$url/v1/videos/video_00000000000000000000000000000000" && is "$code" 404 status && is "$(of .error.type)" not_found_error type
part $? 'no such job: 404'
code=$(curl -sS -m 60 -o "$folder/body" -D "$folder/head" -w '%{http_code}' -H 'Authorization: Bearer wrong' "$url/v1/videos") && is "$code" 401 status && is "$(of .error.type)" authentication_error type
part $? 'a wrong token: 401'
ask -X PUT "$url/v1/videos" && is "$code" 405 status
part $? 'a method that is none here: 405'

ask "$url/v1/videos" -F prompt=long -F "input_reference=@$picture" -F frames=33 -F steps=50
three=$(of .id)
ask -X POST "$url/v1/videos/$three/cancel" && is "$code" 200 status && ask -X POST "$url/v1/videos/$three/cancel" && is "$code" 200 status &&
    for ((i = 0; i < 300; i++)); do # it may have begun: then its step ends first
        ask "$url/v1/videos/$three" && [ "$(of .status)" != in_progress ] && break
        sleep 0.2
    done && is "$(of .status),$(of .error.code)" failed,cancelled 'its state'
part $? 'cancel, twice'
for id in "$one" "$two" "$three"; do
    ask -X DELETE "$url/v1/videos/$id" && is "$code" 200 status && is "$(of .deleted)" true deleted && ask "$url/v1/videos/$id" && is "$code" 404 'status afterwards'
    part $? 'delete, and it is gone'
done
head -c 40000000 /dev/zero >"$folder/large"
ask "$url/v1/videos" -F prompt=x -F "input_reference=@$folder/large" && is "$code" 413 status && is "$(of .error.type)" invalid_request_error type
part $? 'a body of 40 MB: 413, in the shape of every error'
exit $bad
