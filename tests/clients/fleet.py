"""The fleet's page, as an operator sees it, in a headless Chromium.

    fleet.py URL PICTURE FOLDER SOCKET      a front end, and one worker that takes small jobs only
    fleet.py URL PICTURE FOLDER --one       a server of one machine
    fleet.py URL PICTURE FOLDER --token T   a server with tokens

SOCKET is the queue's Redis. CLIENTS_WORKER is the worker's process: another one of its command line is
begun, but with larger limits (CLIENTS_LARGE: its --conf, its --state), and the first is killed and begun
again. Prints a line `ok fleet: what` or `not ok fleet: what: why` a part, and leaves screenshots in FOLDER.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from chromium import Chromium
from parts import Parts

url, picture, folder, how = sys.argv[1].rstrip("/") + "/", sys.argv[2], sys.argv[3], sys.argv[4]
token = sys.argv[5] if how == "--token" else ""
parts = Parts({"--one": "fleet of one", "--token": "fleet, with a token"}.get(how, "fleet"))
began = []


def ask(path, body=None):
    headers = {"Authorization": "Bearer " + token} if token else {}
    if body:
        headers["Content-Type"] = "application/json"
    request = urllib.request.Request(url + path, data=json.dumps(body).encode() if body else None, headers=headers)
    return json.load(urllib.request.urlopen(request, timeout=30))


def submit(size, steps):
    import base64

    data = "data:image/jpeg;base64," + base64.b64encode(open(picture, "rb").read()).decode()
    return ask("v1/videos", {"prompt": "pan left", "size": size, "frames": 9, "steps": steps, "input_reference": data})["id"]


def ends(id, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = ask("v1/videos/" + id)
        if found["status"] not in ("queued", "in_progress"):
            return found
        time.sleep(0.2)
    raise AssertionError("%s is %s after %d s" % (id, found["status"], seconds))


def redis(*words):
    """One command on the queue's Redis, as any program of the network may send it."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(10)
        s.connect(how)
        s.sendall(("*%d\r\n" % len(words) + "".join("$%d\r\n%s\r\n" % (len(w.encode()), w) for w in words)).encode())
        return s.recv(4096)


def command_of(pid):
    return open("/proc/%d/cmdline" % pid).read().rstrip("\0").split("\0")


def begin(command):
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=sys.stderr)
    began.append(process)
    return process


TILE = "[...document.querySelectorAll('#tiles div')].find((d) => d.querySelector('dt').textContent === %s).querySelector('dd').textContent"


def tile(page, name, want, seconds=30):
    page.wait(TILE % json.dumps(name) + " === " + json.dumps(want), "%s to be %s" % (name, want), seconds)


def uncomplained(page, codes=()):
    with parts("nothing was complained of: no exception, no refused resource"):
        rest = [c for c in page.complaints if not any("status of %d" % code in c for code in codes)]
        assert not rest, rest


def fits_a_phone(page, shot):
    with parts("a phone's width is enough, without sideways scrolling"):
        page.size(390, 844, phone=True)
        page.wait("document.querySelectorAll('.peer').length", "a server")
        assert page.js("document.documentElement.scrollWidth") <= 390, page.js("document.documentElement.scrollWidth")
        page.shot(shot)
        page.size(1440, 900)


def named(page):
    with parts("names for screen readers: every control has one"):
        nameless = page.js("""[...document.querySelectorAll("button, input, a[href]")].filter((e) => {
            const labels = e.labels ? [...e.labels].map((l) => l.textContent).join("") : "";
            return !(labels + (e.getAttribute("aria-label") || "") + (e.tagName === "INPUT" ? "" : e.textContent)).trim();
        }).map((e) => e.outerHTML)""")
        assert not nameless, nameless


def of_one(page):
    with parts("a server of one machine is a fleet of one"):
        page.open(url)
        page.click("#fleet-open")
        page.wait("location.pathname === '/fleet' && document.querySelectorAll('.peer').length === 1", "the one server")
        page.wait("document.querySelector('.peer .state').dataset.is === 'ready'", "it to be up", 60)
        tile(page, "Workers up", "1")
        id = submit("96x64", 300)
        page.wait("document.querySelector('.work a') && document.querySelector('.work a').textContent === " + json.dumps(id), "its job")
        page.wait("(document.querySelector('.work .how') || {textContent: ''}).textContent.startsWith('denoise, step ')", "its steps", 60)
        page.shot("fleet-one.png")
        assert ends(id)["status"] == "completed"
        page.wait("!document.querySelector('.work')", "the job to go")
    uncomplained(page)


def with_token(page):
    with parts("a token is asked for, a wrong one refused, the right one shows the fleet"):
        page.open(url + "fleet")
        page.wait("document.querySelector('#token-dialog').open", "the question for a token")
        assert not page.js("document.querySelectorAll('.peer').length")
        page.type("#token", "not-the-token")
        page.click("#token-form .primary")
        page.wait("document.querySelector('#token-dialog').open && document.querySelector('#token-error').textContent", "the refusal of a wrong token")
        page.shot("fleet-token.png")
        page.type("#token", token)
        page.click("#token-form .primary")
        page.wait("!document.querySelector('#token-dialog').open && document.querySelectorAll('.peer').length === 1", "the server")
    with parts("and the videos' page knows it then"):
        page.click("header a")
        page.wait("location.pathname === '/' && document.querySelector('#model') && document.querySelector('#model').textContent && !document.querySelector('#token-dialog').open", "the other page")
    uncomplained(page, (401,))


def of_many(page):
    worker = int(os.environ["CLIENTS_WORKER"])
    conf, state = os.environ["CLIENTS_LARGE"].split(" ")
    command = command_of(worker)
    larger = list(command)
    larger[larger.index("--conf") + 1], larger[larger.index("--state") + 1] = conf, state
    page.dark(False)

    with parts("servers show what they are and have"):
        page.open(url + "fleet")
        page.wait("document.querySelectorAll('.peer').length === 2", "a front end and a worker")
        page.wait("[...document.querySelectorAll('.peer .state')].every((e) => e.dataset.is === 'ready')", "both to be up", 60)
        text = page.text("#server-list")
        for word in ("worker", "front", "cpu", "bf16", "65,536 pixels, 33 frames", "nothing runs", "ago"):
            assert word in text, (word, text)
        tile(page, "Workers up", "1")

    with parts("a running job stands at its worker, with its steps, and leads to its page"):
        first = submit("96x64", 300)
        page.wait("document.querySelector('.work a') && document.querySelector('.work a').textContent === " + json.dumps(first), "the job")
        page.wait("(document.querySelector('.work .how') || {textContent: ''}).textContent.startsWith('denoise, step ')", "its steps", 60)
        page.wait("(document.querySelector('.work .now') || {textContent: ''}).textContent.includes(' %, for ')", "since when it runs")
        tile(page, "Running", "1")
        assert page.js("document.querySelector('.work a').getAttribute('href')") == "./#" + first
        assert ends(first)["status"] == "completed"

    with parts("a job that no worker takes says so on both pages"):
        large = submit("320x256", 8)
        tile(page, "Stuck", "1")
        page.wait("!document.querySelector('#stuck').hidden", "the alert")
        why = "81920 pixels a frame, want at most 65536"
        assert why in page.text("#stuck"), page.text("#stuck")
        page.wait("document.querySelector('#waiting-rows tr') && document.querySelector('#waiting-rows tr').textContent.includes(%s)" % json.dumps(why), "the reason in the queue")
        page.shot("fleet-stuck-light.png")
        page.dark(True)
        page.shot("fleet-stuck-dark.png")
        page.dark(False)
        page.click("#waiting-rows a")
        page.wait("location.pathname === '/' && document.querySelector('#progress-text') && document.querySelector('#progress-text').textContent.includes(%s)" % json.dumps(why), "the reason at the job")
        page.shot("fleet-job-waits.png")
        page.click("#fleet-open")
        page.wait("location.pathname === '/fleet'", "the fleet's page")

    with parts("a worker that takes it comes, and the job goes on"):
        begin(larger)
        assert ends(large)["status"] == "completed"
        tile(page, "Stuck", "0")
        tile(page, "Workers up", "2")
        assert page.js("document.querySelector('#stuck').hidden")

    with parts("a worker is killed: it is shown as silent, its job is taken over"):
        name = open(os.path.join(command[command.index("--state") + 1], "server")).read().strip()
        runs = "[...document.querySelectorAll('.peer')].some((e) => e.querySelector('h3').textContent === %s && e.querySelector('.work'))" % json.dumps(name)
        over = []
        while len(over) < 12 and not page.js(runs):  # until it has some of them
            over.append(submit("96x64", 300))
            time.sleep(2.5)  # the page asks every two
        assert page.js(runs), "none of %d jobs came to the worker" % len(over)
        os.kill(worker, signal.SIGKILL)
        page.wait("document.querySelector('.peer[data-is=lost]')", "the silence", 30)
        assert "silent for" in page.text(".peer[data-is=lost]")
        tile(page, "Silent", "1")
        page.shot("fleet-silent.png")
        for id in over:
            assert ends(id)["status"] == "completed"
        assert page.js("Number(%s)" % (TILE % '"Taken over"')) >= 1
        begin(command)
        tile(page, "Silent", "0", 60)

    with parts("what a server tells of itself is text, never markup"):
        evil = '<img src=x onerror="window.hit=1"><b>bold</b>'
        redis("HSET", "sluice:says", "evil", json.dumps({"role": evil, "model": evil, "version": evil, "devices": [evil], "lora": [evil], "pixels": evil, "frames": evil}))
        redis("ZADD", "sluice:servers", str(int(time.time() * 1000)), "evil")
        page.wait("[...document.querySelectorAll('.peer h3')].some((e) => e.textContent === 'evil')", "the server")
        assert not page.js("window.hit") and not page.js("document.querySelector('#server-list b, #server-list img')")
        redis("HSET", "sluice:says", "evil", '[1, "no object"')
        redis("ZADD", "sluice:servers", str(int(time.time() * 1000)), "evil")
        page.wait("[...document.querySelectorAll('.peer')].some((e) => e.textContent.startsWith('evilunknown'))", "one that tells nothing")
        redis("ZREM", "sluice:servers", "evil")
        redis("HDEL", "sluice:says", "evil")

    with parts("a lost server is told, and found again"):
        complaints = len(page.complaints)
        page.offline(True)
        page.wait("document.querySelector('#server').dataset.is === 'lost' && !document.querySelector('#banner').hidden", "the banner")
        assert page.js("document.querySelectorAll('.peer').length") >= 2  # as it was
        page.offline(False)
        page.wait("document.querySelector('#server').dataset.is === 'ready' && document.querySelector('#banner').hidden", "the server again")
        del page.complaints[complaints:]  # refused connections, as it should be

    fits_a_phone(page, "fleet-phone.png")
    named(page)
    uncomplained(page)


try:
    with Chromium(folder) as browser:
        {"--one": of_one, "--token": with_token}.get(how, of_many)(browser)
finally:
    for process in began:
        process.terminate()
    for process in began:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
sys.exit(parts.end())
