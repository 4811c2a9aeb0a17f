"""conf/kubernetes held against the schemas, against itself and against the program.

    manifests.py SLUICE_BIN SCRATCH

Prints a line "ok WHAT" or "not ok WHAT: why" for each check. The servers that the manifests
describe are started as they say, on this machine: their arguments with other paths, the demo model
on the CPU, a real Redis.
"""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import kubernetes_validate
import yaml

ROOT = pathlib.Path("conf/kubernetes")
VERSIONS = ("1.29", "1.33", "1.37")  # of Kubernetes
NO_SCHEMA = {"kustomization.yaml", "prometheus-adapter.yaml"}  # not Kubernetes' own kinds
PARK_S = 15  # a drained server's, after supervise.drain_s
TOKEN = "0123456789abcdef0123456789abcdef"


def check(what, wrong):
    """wrong: texts of what is not as it should be."""
    wrong = list(wrong)
    print(f"not ok {what}: {'; '.join(wrong)[:900]}" if wrong else f"ok {what}", flush=True)
    return not wrong


def documents(name):
    return [d for d in yaml.safe_load_all((ROOT / name).read_text()) if d]


def all_documents():
    for path in sorted(ROOT.glob("*.yaml")):
        if path.name not in NO_SCHEMA:
            for document in documents(path.name):
                yield path.name, document


# ---- on paper ----


def schema_errors():
    for version in VERSIONS:
        for name, document in all_documents():
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as e:
                yield f"{name}, {document['kind']}, Kubernetes {version}: {e.message}"
            except kubernetes_validate.SchemaNotFoundError as e:
                yield f"{name}: {e}"


def pods():
    for _, d in all_documents():
        if d["kind"] == "Deployment":
            yield d["metadata"]["name"], d, d["spec"]["template"]["spec"]


def contradictions():
    named = yaml.safe_load((ROOT / "kustomization.yaml").read_text())
    for file in named["resources"] + named["configMapGenerator"][0]["files"]:
        if not (ROOT / file).is_file():
            yield f"kustomization.yaml names {file}"
    images = {i["name"] for i in named["images"]}
    there = {(d["kind"], d["metadata"]["name"]) for _, d in all_documents()}
    there |= {("ConfigMap", g["name"]) for g in named["configMapGenerator"]}
    labels = {}
    for name, deployment, pod in pods():
        labels[name] = deployment["spec"]["template"]["metadata"]["labels"]
        if deployment["spec"]["selector"]["matchLabels"] != labels[name]:
            yield f"{name} does not select its own pods"
        volumes = {v["name"]: v for v in pod["volumes"]}
        used = set()
        for c in pod["initContainers"] + pod["containers"]:
            used |= {m["name"] for m in c["volumeMounts"]}
            if c["image"] not in images:
                yield f"{name}: kustomization.yaml has no image {c['image']}"
            for source in c.get("envFrom", []):
                if ("Secret", source["secretRef"]["name"]) not in there:
                    yield f"{name}: no secret {source['secretRef']['name']}"
            if not c["securityContext"]["readOnlyRootFilesystem"]:
                yield f"{name}: {c['name']} may write to its image"
            if "memory" not in c["resources"]["limits"]:
                yield f"{name}: {c['name']} has no limit of memory"
        if used != set(volumes):
            yield f"{name}: volumes and mounts differ: {used ^ set(volumes)}"
        for v in volumes.values():
            for kind, key, inner in (("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
                                     ("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")):
                if key in v and (kind, v[key][inner]) not in there:
                    yield f"{name}: no {kind} {v[key][inner]}"
    for file, d in all_documents():
        spec = d.get("spec", {})
        if d["kind"] in ("PodDisruptionBudget", "NetworkPolicy"):
            wanted = (spec.get("selector") or spec.get("podSelector"))["matchLabels"]
        elif d["kind"] == "Service":
            wanted = spec["selector"]
        else:
            continue
        if wanted not in labels.values():
            yield f"{file}: {d['kind']} selects nobody"


def drains():
    """A pod is given the time to drain that its settings promise; the hook waits for its end."""
    for name, _, pod in pods():
        hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        if name != "sluice-worker":
            continue
        drain_s = int(re.search(r"drain_s\s*=\s*(\d+)", (ROOT / "worker.cfg").read_text())[1])
        if pod["terminationGracePeriodSeconds"] < drain_s + PARK_S + 10:
            yield f"{name}: the grace period is shorter than drain_s {drain_s} and {PARK_S} s"
        if "kill -TERM 1" not in hook[-1]:
            yield f"{name}: preStop does not drain"


# ---- as processes of this machine ----


class Server:
    def __init__(self, bin_dir, scratch, name, queue):
        self.container = next(p for n, _, p in pods() if n == name)["containers"][0]
        self.base = scratch / name
        self.base.mkdir()
        tokens = self.base / "tokens"
        tokens.write_text(f"ana {TOKEN} priority=10\n")
        tokens.chmod(0o600)
        for cfg in ROOT.glob("*.cfg"):  # on a machine without a GPU
            (self.base / cfg.name).write_text(cfg.read_text().replace('"cuda:0"', '"cpu"'))
        place = {"/model": os.path.abspath("models/demo"), "/run/sluice/tokens": str(tokens),
                 "/etc/sluice": str(self.base), "/state": str(self.base), "/blobs": str(scratch / "blobs"),
                 "0.0.0.0:8080": "127.0.0.1:0"}
        args = []
        for arg in self.container["args"]:
            key, _, value = arg.partition("=")
            for old, new in place.items():
                if value.startswith(old):
                    value = new + value[len(old):]
                    break
            args.append(f"{key}={value}" if value else key)
        self.log = open(self.base / "log", "w+", encoding="utf-8")
        self.process = subprocess.Popen([bin_dir / "sluice", *args], stdout=subprocess.PIPE, stderr=self.log, text=True,
                                        env={**os.environ, "SLUICE_QUEUE": queue})
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        self.url = found[0] if found else None

    def said(self):
        self.log.seek(0)
        return self.log.read()[-600:]

    def get(self, path, token=False, body=None):
        request = urllib.request.Request(self.url + path, data=body)
        if token:
            request.add_header("Authorization", f"Bearer {TOKEN}")
        if body:
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def probes(self):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            path = self.container[probe]["httpGet"]["path"]
            code, said = self.get(path)  # the kubelet has no token
            if code != 200:
                yield f"{probe} {path}: HTTP {code} {said}"

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def start_redis(scratch):
    program = shutil.which("redis-server") or shutil.which("redis-check-rdb")
    socket = scratch / "redis.sock"
    redis = subprocess.Popen(["redis-server", "--port", "0", "--unixsocket", socket, "--dir", scratch, "--save", "",
                              "--appendonly", "yes", "--logfile", "redis.log"], executable=program)
    while not socket.exists() and redis.poll() is None:
        time.sleep(0.05)
    return redis, f"unix://{socket}?db=0"


def figures(metrics):
    wanted = {m["external"]["metric"]["name"] for m in documents("autoscale.yaml")[0]["spec"]["metrics"]}
    given = {r["name"]["as"]: r["metricsQuery"] for r in documents("prometheus-adapter.yaml")[0]["rules"]["external"]}
    if wanted != set(given):
        yield f"the autoscaler asks for {wanted}, the adapter gives {set(given)}"
    for name in wanted:
        if not re.search(rf"^{name} \d", metrics, re.M):
            yield f"/metrics has no {name}"
        if f"({name}{{" not in given.get(name, ""):
            yield f"the adapter does not ask for {name}"


def ends(front):
    job = json.dumps({"prompt": "pan left", "size": "96x64", "num_frames": 9, "num_inference_steps": 4, "seed": 1,
                      "input_reference": {"image_url": picture()}})
    code, said = front.get("/v1/videos", True, job.encode())
    if code != 200:
        yield f"HTTP {code} {said}"
        return
    ident, until, status = json.loads(said)["id"], time.monotonic() + 120, "queued"
    while status in ("queued", "in_progress") and time.monotonic() < until:
        time.sleep(0.2)
        status = json.loads(front.get(f"/v1/videos/{ident}", True)[1])["status"]
    if status != "completed":
        yield f"the job is {status}"


def picture():
    import base64
    data = pathlib.Path("tests/golden/tiny-i2v/i2v-96x64x9.png").read_bytes()
    return "data:image/png;base64," + base64.b64encode(data).decode()


def run(bin_dir, scratch):
    redis, queue = start_redis(scratch)
    front = worker = None
    try:
        front = Server(bin_dir, scratch, "sluice-front", queue)
        worker = Server(bin_dir, scratch, "sluice-worker", queue)
        for name, server in (("front end", front), ("worker", worker)):
            if not check(f"the {name} begins with its manifest's arguments", [] if server.url else [server.said()]):
                return
            check(f"the {name}'s probes are answered", server.probes())
        check("a job goes from the front end to the worker", ends(front))
        check("the autoscaler's figures are in /metrics", figures(worker.get("/metrics", True)[1]))
        for name, server in (("worker", worker), ("front end", front)):
            status = server.stop()
            check(f"SIGTERM ends the {name}, status 0", [] if status == 0 else [f"status {status}: {server.said()}"])
    finally:
        for server in (worker, front):
            if server and server.process.poll() is None:
                server.stop()
        redis.kill()
        redis.wait()


def main():
    check(f"manifests: Kubernetes' schemas {', '.join(VERSIONS)}, strictly", schema_errors())
    check("manifests: what they name is there", contradictions())
    check("manifests: the grace period is longer than the drain", drains())
    run(pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]))


main()
