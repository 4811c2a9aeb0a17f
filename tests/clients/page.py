"""The page, as a person uses it, in a headless Chromium: a tall list of what must be seen to happen.

    page.py URL PICTURE FOLDER [TOKEN]

CLIENTS_SERVER is the server's process: it is killed in the middle, and begun again by the same command
line. With a token, only what differs then: the question for it, and bytes that come through fetch. Prints a
line `ok page: what` or `not ok page: what: why` a part, and leaves screenshots in FOLDER.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

from chromium import Chromium
from parts import Parts

url, picture, folder = sys.argv[1].rstrip("/") + "/", sys.argv[2], sys.argv[3]
token = sys.argv[4] if len(sys.argv) > 4 else ""
parts = Parts("page, with a token" if token else "page")


def ask(path, method="GET"):
    request = urllib.request.Request(url + path, method=method, headers={"Authorization": "Bearer " + token} if token else {})
    return json.load(urllib.request.urlopen(request, timeout=30))


def chosen(page):
    return page.js("location.hash.slice(1)")


def percent(page):
    return page.js("Number(document.querySelector('#job-progress .bar').getAttribute('aria-valuenow'))")


def submit(page, prompt, **fields):
    before = chosen(page)
    page.type("#prompt", prompt)
    for name, value in fields.items():
        page.type("#" + name, str(value))
    page.click("#submit")
    page.wait("location.hash.length > 1 && location.hash.slice(1) !== %s" % json.dumps(before), "the job that was sent")
    return chosen(page)


def to_the_end(page, id, seconds=120):
    page.wait("document.querySelector(\".job[href='#%s']\")" % id, "the job's row")
    page.click(".job[href='#%s']" % id)
    page.wait("document.querySelector('#job-badge').dataset.is === 'completed'", "the job's end", seconds)


def plays(page, id):
    page.wait("document.querySelector('#job-video').readyState >= 2", "the video's first frame")
    page.js("document.querySelector('#job-video').play()")
    page.wait("document.querySelector('#job-video').currentTime > 0.1", "the video's time to advance")
    page.js("document.querySelector('#job-video').pause()")
    size = page.js("[document.querySelector('#job-video').videoWidth, document.querySelector('#job-video').videoHeight]")
    found = ask("v1/videos/" + id)
    assert size == [found["width"], found["height"]], (size, found["size"])


def restart(pid):
    """SIGKILL to the server, then the same again at the same port. Gives what begins it."""
    command = open("/proc/%d/cmdline" % pid).read().rstrip("\0").split("\0")
    command[command.index("--listen") + 1] = url.split("/")[2]
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 10
    while time.monotonic() < end and os.path.exists("/proc/%d/fd/0" % pid):
        time.sleep(0.05)
    return lambda: subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=sys.stderr)


def uncomplained(page):
    """Answers that a part asked for on purpose are shown as errors by the browser."""
    with parts("nothing was complained of: no exception, no refused resource"):
        rest = [c for c in page.complaints if not any("status of %d" % code in c for code in (400, 401, 404, 409))]
        assert not rest, rest


def with_token(page):
    with parts("a token is asked for, and a wrong one refused"):
        page.open(url)
        page.wait("document.querySelector('#token-dialog').open", "the question for a token")
        page.type("#token", "not-the-token")
        page.click("#token-form .primary")
        page.wait("document.querySelector('#token-dialog').open && document.querySelector('#token-error').textContent", "the refusal of a wrong token")
        page.shot("token.png")
        page.type("#token", token)
        page.click("#token-form .primary")
        page.wait("!document.querySelector('#token-dialog').open && document.querySelector('#model').textContent", "the model's name")
    with parts("the token stays over a reload"):
        page.reload()
        page.wait("document.querySelector('#model').textContent && !document.querySelector('#token-dialog').open", "the model's name again")
    with parts("a job runs, and its video comes as a blob and plays"):
        page.files("#picture", picture)
        id = submit(page, "with a token", frames=9, steps=8)
        page.wait("!document.querySelector('#job-preview').hidden && document.querySelector('#job-preview').naturalWidth > 0", "the preview", 60)
        to_the_end(page, id)
        plays(page, id)
        source = page.js("document.querySelector('#job-video').src")
        assert source.startswith("blob:"), source
        page.wait("document.querySelector(\".job[href='#%s'] img\").naturalWidth > 0" % id, "the thumbnail in the list")
    uncomplained(page)


if token:
    with Chromium(folder) as page:
        with_token(page)
    sys.exit(parts.end())

with Chromium(folder) as page:
    page.dark(False)

    with parts("the page opens and shows the model's defaults"):
        page.open(url)
        page.wait("document.querySelector('#model').textContent", "the model's name")
        defaults = ask("v1/defaults")
        assert page.text("#model") == defaults["model"], page.text("#model")
        for name in ("frames", "steps"):
            found = page.js("document.querySelector('#%s').placeholder" % name)
            assert found == str(defaults["defaults"][name]), (name, found)
        page.wait("document.querySelector('#server').dataset.is === 'ready'", "the server's readiness", 60)

    with parts("an error of the server stands by its field"):
        page.files("#picture", picture)
        page.wait("document.querySelector('#picture-view').naturalWidth > 0", "the preview of the picture")
        page.type("#prompt", "wrong frames")
        page.type("#frames", "10")
        page.click("#submit")
        page.wait("document.querySelector('#frames').getAttribute('aria-invalid') === 'true'", "the refused field")
        error = page.js("document.querySelector('#frames').closest('.field').querySelector('.error').textContent")
        assert "10" in error, error
        page.shot("error.png")

    with parts("a job is sent with a picture and shows at once"):
        first = submit(page, "The camera pans slowly to the left.", frames=9, steps=12, seed=1)
        page.wait("document.querySelector('#job-prompt').textContent.startsWith('The camera pans')", "the job")
        page.wait("[...document.querySelectorAll('.job')].some((a) => a.hash.slice(1) === %s)" % json.dumps(first), "its row")
        found = ask("v1/videos/" + first)
        assert found["frames"] == 9 and found["steps"] == 12 and found["seed"] == 1, found

    with parts("progress moves, and a preview of the latents comes"):
        page.wait("document.querySelector('#job-badge').dataset.is === 'in_progress'", "the job's begin", 60)
        page.wait("Number(document.querySelector('#job-progress .bar').getAttribute('aria-valuenow')) > 0", "progress above 0", 60)
        one = percent(page)
        page.wait("!document.querySelector('#job-preview').hidden && document.querySelector('#job-preview').naturalWidth > 0", "the preview", 60)
        page.shot("running-light.png")
        page.dark(True)
        page.shot("running-dark.png")
        page.dark(False)
        page.wait("document.querySelector('#job-badge').dataset.is === 'completed' || "
                  "Number(document.querySelector('#job-progress .bar').getAttribute('aria-valuenow')) > %d" % one, "progress above %d" % one, 60)

    with parts("a reload in the middle keeps the job and the draft"):
        second = submit(page, "Zoom in slowly.", frames=9, steps=40)
        page.wait("document.querySelector('#job-badge').dataset.is === 'in_progress'", "the second job's begin", 120)
        page.reload()
        page.wait("document.querySelector('#job-prompt').textContent === 'Zoom in slowly.'", "the same job again")
        assert chosen(page) == second, chosen(page)
        page.wait("document.querySelector('#prompt').value === 'Zoom in slowly.' && document.querySelector('#steps').value === '40'", "the draft")
        page.wait("document.querySelector('#picture-view').naturalWidth > 0", "the draft's picture")
        page.wait("Number(document.querySelector('#job-progress .bar').getAttribute('aria-valuenow')) > 0", "progress after the reload", 60)

    with parts("a running job is cancelled, after a question"):
        page.click("#job-cancel")
        page.wait("document.querySelector('#ask').open", "the question")
        page.click("#ask-yes")
        page.wait("document.querySelector('#job-badge').dataset.is === 'cancelled'", "the job's end", 60)
        found = ask("v1/videos/" + second)
        assert found["status"] == "failed" and found["error"]["code"] == "cancelled", found

    with parts("the finished video plays"):
        to_the_end(page, first)
        plays(page, first)
        assert page.js("document.querySelector('#job-download').getAttribute('download')").endswith(".mp4")

    with parts("the timeline shows every stage"):
        page.wait("!document.querySelector('#timeline').hidden && document.querySelectorAll('#plot rect').length > 5", "the timeline")
        lanes = page.js("[...document.querySelectorAll('#lanes .first')].map((e) => e.textContent)")
        for stage in ("text", "image", "denoise", "decode", "mux"):
            assert any(lane.startswith(stage) for lane in lanes), lanes
        before = page.js("document.querySelector('#plot svg').clientWidth")
        page.click("#zoom-in")
        assert page.js("document.querySelector('#plot svg').clientWidth") > before
        page.click("#zoom-fit")
        page.js("document.querySelector('#job').scrollTop = 0")
        page.size(1440, 1400)
        page.shot("done-light.png")
        page.dark(True)
        page.shot("done-dark.png")
        page.dark(False)
        page.size(1440, 900)

    with parts("again with changes fills the form"):
        page.type("#prompt", "something else")
        page.type("#frames", "13")
        page.click("#picture-clear")
        page.click("#job-again")
        page.wait("document.querySelector('#prompt').value === 'The camera pans slowly to the left.'", "the job's prompt")
        values = page.js("Object.fromEntries(['frames', 'seed'].map((n) => [n, document.querySelector('#' + n).value]))")
        assert values == {"frames": "9", "seed": "1"}, values
        page.wait("document.querySelector('#picture-view').naturalWidth > 0", "the job's picture")

    with parts("what a job brings is text, never markup"):
        third = submit(page, "<img src=x onerror=window.hit=1><b>bold</b>", frames=5, steps=2)
        page.wait("document.querySelector('#job-prompt').textContent.includes('<b>bold</b>')", "the prompt as it was written")
        assert not page.js("window.hit") and page.js("document.querySelector('#job-prompt').children.length") == 0

    with parts("a lost server is told, and found again"):
        complaints = len(page.complaints)
        page.offline(True)
        page.wait("document.querySelector('#server').dataset.is === 'lost' && !document.querySelector('#banner').hidden", "the banner")
        page.shot("lost.png")
        page.offline(False)
        page.wait("document.querySelector('#server').dataset.is === 'ready'", "the server again")
        page.wait("document.querySelector('#banner').dataset.is === 'good'", "the good news")
        del page.complaints[complaints:]  # refused connections, as it should be

    with parts("keys alone reach the queue, and delete a job"):
        page.js("document.querySelector('.job').focus()")
        one = page.js("document.activeElement.hash")
        page.key("ArrowDown", number=40)
        assert page.js("document.activeElement.hash") != one and page.js("document.activeElement.className") == "job"
        page.js("document.querySelector(\".job[href='#%s']\").click()" % third)
        page.wait("location.hash.slice(1) === %s && !document.querySelector('#job-one').hidden" % json.dumps(third), "the third job")
        page.js("document.querySelector('#job-delete').focus()")
        page.key("Enter", number=13, text="\r")
        page.wait("document.querySelector('#ask').open", "the question")
        page.click("#ask-yes")
        page.wait("![...document.querySelectorAll('.job')].some((a) => a.hash.slice(1) === %s)" % json.dumps(third), "the row to go")
        try:
            ask("v1/videos/" + third)
            raise AssertionError("the job is still there")
        except urllib.error.HTTPError as e:
            assert e.code == 404, e.code

    server = None
    with parts("the server is killed in the middle of a job and begun again: the page tells, and the job ends"):
        complaints = len(page.complaints)
        page.type("#seed", "")
        fourth = submit(page, "over a restart", frames=9, steps=30)
        page.wait("Number(document.querySelector('#job-progress .bar').getAttribute('aria-valuenow')) > 10", "progress", 60)
        begin = restart(int(os.environ["CLIENTS_SERVER"]))
        page.wait("document.querySelector('#server').dataset.is === 'lost'", "the banner")
        server = begin()
        page.wait("document.querySelector('#banner').dataset.is === 'good'", "the server again", 60)
        to_the_end(page, fourth)
        assert ask("v1/videos/" + fourth)["attempts"] == 2
        del page.complaints[complaints:]

    with parts("a phone's width shows one part at a time, without sideways scrolling"):
        page.js("document.querySelector(\".job[href='#%s']\").click()" % first)
        page.size(390, 844, phone=True)
        for name in ("new", "queue", "job"):
            page.click("#views [data-to=%s]" % name)
            page.wait("getComputedStyle(document.querySelector('#%s')).display === 'block'" % name, "the part " + name)
            assert page.js("document.documentElement.scrollWidth") <= 390, page.js("document.documentElement.scrollWidth")
            page.shot("phone-%s.png" % name)

    with parts("names for screen readers: every control has one"):
        nameless = page.js("""[...document.querySelectorAll("button, input, textarea, a[href], video, [role=progressbar]")].filter((e) => {
            const labels = e.labels ? [...e.labels].map((l) => l.textContent).join("") : "";
            const by = (e.getAttribute("aria-labelledby") || "").split(" ").map((i) => (document.getElementById(i) || {}).textContent || "").join("");
            return !(labels + by + (e.getAttribute("aria-label") || "") + (e.tagName === "INPUT" || e.tagName === "TEXTAREA" ? "" : e.textContent)).trim();
        }).map((e) => e.outerHTML)""")
        assert not nameless, nameless

    uncomplained(page)

if server:
    with parts("the server that was begun again ends by SIGTERM, with status 0"):
        server.terminate()
        try:
            assert server.wait(75) == 0, server.returncode
        finally:
            server.kill()
sys.exit(parts.end())
