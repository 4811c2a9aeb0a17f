#!/usr/bin/env bash
# slurm.sh - conf/slurm/workers.sbatch under a real Slurm: slurmctld, two slurmd and munged of this
# machine's packages, on the loopback, with folders, ports and a key of their own. A front end and
# Redis stand beside it. One node is drained while its worker runs a job; the other worker comes near
# its time limit. Every job ends once, with the bytes that one command gives it. The last line is
# `N passed, N failed`.
#
#   SLUICE_BIN   where Sluice's programs are (default bin)
#
# It wants no root: the daemons run as whoever starts it, and so can run jobs of nobody else. No
# cgroups: processes are followed by /proc (proctrack/linuxproc).
set -u
cd "$(dirname "$0")/.." || exit 2
PATH=$PATH:/usr/sbin:/sbin
bin=$(realpath "${SLUICE_BIN:-bin}") model=$PWD/models/demo picture=$PWD/tests/demo-model/pictures/sunset.jpg
jobs=16 passed=0 failed=0
base=$(mktemp -d "${TMPDIR:-/tmp}/sluice-slurm.XXXXXX") || exit 2
export SLURM_CONF=$base/slurm.conf SLUICE_QUEUE_FILE=$base/queue SLUICE_MODEL=$model SLUICE_BLOBS=$base/blobs
export SLUICE_STATE=$base/state SLUICE_CONF=$base/worker.cfg SLUICE=$bin/sluice

say() { echo "slurm: $*" >&2; }
ok() { echo "ok $1"; passed=$((passed + 1)); }
not_ok() {
    echo "not ok $1: ${2-}"
    failed=$((failed + 1))
    for log in "$base"/*.log; do [ -f "$log" ] && { echo "-- ${log##*/}"; tail -n 15 "$log"; }; done >&2
}
finish() {
    local pid i
    local -a daemons
    scancel --full --signal=KILL -u "$(id -un)" 2>/dev/null
    scancel -u "$(id -un)" 2>/dev/null
    for ((i = 0; i < 75; i++)); do [ -n "$(squeue -h 2>/dev/null)" ] || break; sleep 0.2; done # its steps' keepers go with it
    mapfile -t daemons < <(cat "$base"/*.pid 2>/dev/null)
    for pid in "${daemons[@]}"; do kill "$pid" 2>/dev/null; done
    [ ${#daemons[@]} -eq 0 ] || sleep 1
    for pid in "${daemons[@]}" ${front-} ${redis-}; do kill -9 "$pid" 2>/dev/null; done
    rm -rf "$base"
}
trap finish EXIT
trap 'exit 130' INT TERM
wait_for() { # WHAT SECONDS COMMAND...: until it succeeds
    local what=$1 s=$2
    shift 2
    for ((i = 0; i < s * 5; i++)); do "$@" && return 0; sleep 0.2; done
    not_ok "$what" "not within $s s"
    return 1
}

# ---- Slurm ----
for program in slurmctld slurmd munged sbatch; do
    command -v $program >/dev/null || { say "no $program here, want what tests/setup.sh --fleet installs"; exit 2; }
done
# Ports of nobody's: bound at once, so they differ.
read -r ctl_port port1 port2 < <(perl -MIO::Socket::INET -e '
    my @s = map { IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1") } 1 .. 3;
    print join(" ", map { $_->sockport } @s), "\n"')
user=$(id -un)
mkdir -m 700 "$base/ctl" "$base/blobs" "$base/state" || exit 2
(umask 077; head -c 1024 /dev/urandom >"$base/munge.key"; echo "unix://$base/redis.sock?db=0" >"$base/queue")
cat >"$base/slurm.conf" <<CONF
ClusterName=sluice
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$ctl_port
AuthType=auth/munge
AuthInfo=socket=$base/munge.sock,cred_expire=5
CredType=cred/munge
SlurmUser=$user
SlurmdUser=$user
StateSaveLocation=$base/ctl
SlurmdSpoolDir=$base/spool-%n
SlurmctldPidFile=$base/slurmctld.pid
SlurmdPidFile=$base/slurmd-%n.pid
SlurmctldLogFile=$base/slurmctld.log
SlurmdLogFile=$base/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
NodeName=w1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$port1 CPUs=1
NodeName=w2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$port2 CPUs=1
PartitionName=all Nodes=w1,w2 Default=YES MaxTime=INFINITE State=UP
CONF
munged --force --socket="$base/munge.sock" --key-file="$base/munge.key" --pid-file="$base/munged.pid" \
    --log-file="$base/munged.log" --seed-file="$base/munge.seed" --num-threads=1 || exit 1
slurmctld || { not_ok 'slurmctld begins' "status $?"; exit 1; }
# slurmd wants a plugin for cgroups even where nothing asks for one; Slurm 22.05 knows none that is
# none.
node_begins() { # NAME
    local plugin i
    for plugin in disabled cgroup/v1 cgroup/v2; do
        echo "CgroupPlugin=$plugin" >"$base/cgroup.conf"
        slurmd -N "$1" 2>>"$base/slurmd-$1.log"
        for ((i = 0; i < 15; i++)); do
            sleep 0.2
            grep -q 'slurmd started' "$base/slurmd-$1.log" 2>/dev/null && return 0
        done
    done
    not_ok "slurmd $1 begins" "$(tail -n 1 "$base/slurmd-$1.log")"
    return 1
}
node_begins w1 && node_begins w2 || exit 1
both_idle() { [ "$(sinfo -h -N -o %T | grep -c '^idle')" -eq 2 ]; }
wait_for 'two nodes' 60 both_idle || exit 1
ok "Slurm $(sinfo --version | cut -d' ' -f2): two nodes on the loopback"

# ---- the jobs, and what one command makes of them ----
for ((i = 0; i < jobs; i++)); do
    printf '{"image": "%s", "prompt": "pan left", "width": 160, "height": 96, "frames": 17, "steps": %d, "seed": %d, "output": "%s/want-%d.mp4"}\n' \
        "$picture" $((i % 4 ? 12 : 60)) "$i" "$base" "$i"
done >"$base/jobs.jsonl"
printf 'video: { preset = "veryfast"; threads = 2; };\ndenoise: { state_every = 5; };\nqueue: { lease_s = 5; };\n' >"$base/serve.cfg"
{ cat "$base/serve.cfg"; echo 'supervise: { drain_s = 4; };'; } >"$base/worker.cfg"
"$bin/sluice" run --model "$model" --jobs "$base/jobs.jsonl" --conf "$base/serve.cfg" --quiet >"$base/run.log" 2>&1 ||
    { not_ok 'one command makes them' "$(tail -n 1 "$base/run.log")"; exit 1; }

# ---- Redis, a front end, the workers ----
server=$(command -v redis-server || command -v redis-check-rdb) || { say 'no redis-server here'; exit 2; }
(exec -a redis-server "$server" --port 0 --unixsocket "$base/redis.sock" --dir "$base" --save '' --appendonly yes \
    --logfile redis.log) &
redis=$!
disown
redis_answers() { [ "$(redis-cli -s "$base/redis.sock" PING 2>/dev/null)" = PONG ]; }
wait_for 'Redis' 20 redis_answers || exit 1
SLUICE_QUEUE=$(<"$base/queue") "$bin/sluice" serve --model "$model" --conf "$base/serve.cfg" --role front --blobs "$base/blobs" \
    --state "$base/front" --listen 127.0.0.1:0 >"$base/front.line" 2>"$base/front.log" &
front=$!
disown
front_answers() { SLUICE_SERVER=$(sed -n 's/.* at \(http:[^ ]*\).*/\1/p' "$base/front.line"); [ -n "$SLUICE_SERVER" ]; }
wait_for 'a front end' 60 front_answers || exit 1
export SLUICE_SERVER

# Slurm's limits are minutes; the signal comes 30 to 90 s before, that is 30 to 90 s after the start.
array=$(sbatch --parsable --array=1-2 --time=2 --signal=B:USR1@30 --output="$base/task-%a.log" conf/slurm/workers.sbatch) || exit 1
serves() { grep -q 'sluice: serving' "$base/task-$1.log" 2>/dev/null; }
wait_for 'worker 1' 60 serves 1 && wait_for 'worker 2' 60 serves 2 || exit 1
ok 'two tasks of the array serve'
node_of() { scontrol show job "${array}_$1" | sed -n 's/^ *NodeList=//p' | tail -n 1; }
state_of() { squeue -h -r -j "${array}_$1" -o %T 2>/dev/null; }

ids=()
for ((i = 0; i < jobs; i++)); do
    id=$("$bin/sluice" submit --image "$picture" --prompt 'pan left' --width 160 --height 96 --frames 17 --steps $((i % 4 ? 12 : 60)) \
        --seed "$i" --key "job-$i" 2>>"$base/submit.log") || { not_ok "job $i is accepted" "$(tail -n 1 "$base/submit.log")"; exit 1; }
    ids+=("$id")
done

# ---- a node is drained while its worker runs a job ----
count() { grep -c "$2" "$base/task-$1.log"; }
runs_one() { [ "$(count 2 ': begins')" -gt "$(count 2 ': completed')" ]; }
wait_for 'worker 2 runs a job' 60 runs_one || exit 1
node=$(node_of 2)
scontrol update NodeName="$node" State=DRAIN Reason='test-slurm' && scancel --batch --signal=TERM "${array}_2"
task_is_over() { ! state_of 2 | grep -qE 'RUNNING|COMPLETING|PENDING'; }
if wait_for 'the drained task ends' 60 task_is_over; then
    if grep -q 'draining: [1-9]' "$base/task-2.log" && grep -q 'the server has ended, status 0' "$base/task-2.log"; then
        ok "node $node is drained while its worker runs: it ends by itself, status 0"
    else not_ok 'the worker drains' "$(tail -n 3 "$base/task-2.log" | tr '\n' ' ')"; fi
fi
node_is_drained() { sinfo -h -N -n "$node" -o %T | grep -q '^drained'; }
wait_for 'the node is empty' 30 node_is_drained && ok "node $node: drained"

# ---- the other worker comes near its time limit ----
requeued() { [ "$(scontrol show job "${array}_1" | sed -n 's/.*Restarts=\([0-9]*\).*/\1/p' | head -n 1)" = 1 ]; }
wait_for 'the task is requeued' 150 requeued && grep -q 'the time limit is near' "$base/task-1.log" &&
    ok 'the other worker drains before its time limit, and its task is requeued'
serves_again() { [ "$(count 1 'sluice: serving')" -ge 2 ]; }
wait_for 'the requeued task serves' 150 serves_again && ok 'it begins again'

# ---- every job ended once, as it should ----
wrong=
for ((i = 0; i < jobs; i++)); do
    "$bin/sluice" wait "${ids[i]}" --timeout 120 -o "$base/got-$i.mp4" >"$base/wait.log" 2>&1 || wrong+=" $i:$(tail -n 1 "$base/wait.log")"
    cmp -s "$base/want-$i.mp4" "$base/got-$i.mp4" || wrong+=" $i:other-bytes"
done
ends=$(cat "$base"/task-*.log | grep -c ': completed')
elsewhere=$(cat "$base"/task-*.log | grep -c ': begins again')
if [ -z "$wrong" ] && [ "$ends" -eq "$jobs" ]; then
    ok "$jobs jobs ended once each, with the bytes of one command; $elsewhere claims went on with what another had begun"
else not_ok 'every job ends once, with the right bytes' "$wrong; $ends ends"; fi

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
