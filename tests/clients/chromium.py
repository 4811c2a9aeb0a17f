"""A headless Chromium, steered over its DevTools protocol: one page, waits with deadlines.

    with Chromium(folder) as page:
        page.open("http://127.0.0.1:8080/")
        page.wait("document.querySelector('#submit')", "the form")
        page.shot("form.png")

The browser's process, its profile and its socket belong to the object and end with it. Whatever the
page complains of (exceptions, what the console shows as an error, refused resources) is in
`page.complaints`.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome")


class Chromium:
    def __init__(self, folder, size=(1440, 900)):
        program = next((p for p in map(shutil.which, NAMES) if p), None)
        if not program:
            raise RuntimeError("no %s on the PATH, want Debian's package chromium" % " or ".join(NAMES))
        self.folder, self.complaints, self.number, self.answers = folder, [], 0, {}
        os.makedirs(folder, exist_ok=True)
        self.profile = tempfile.mkdtemp(prefix="sluice-chromium-")
        self.output = open(os.path.join(folder, "chromium.log"), "wb")
        # No sandbox: it wants user namespaces, which root and many containers have not. The only
        # pages opened are the server's own.
        self.process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
             "--mute-audio", "--disable-background-networking", "--disable-component-update", "--remote-allow-origins=*",
             "--autoplay-policy=no-user-gesture-required", "--user-data-dir=" + self.profile, "--remote-debugging-port=0", "about:blank"],
            stdout=self.output, stderr=self.output, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            self.socket = websocket.create_connection(self._address(), timeout=30, suppress_origin=True)
            for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
                self.call(domain + ".enable")
            self.size(*size)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if getattr(self, "socket", None):
            self.socket.close()
            self.socket = None
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(10)
        except ProcessLookupError:
            pass
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
        self.output.close()
        shutil.rmtree(self.profile, ignore_errors=True)

    def _address(self):
        """The page's socket: the browser writes its port to a file, and lists its pages over HTTP."""
        import urllib.request

        end, where = time.monotonic() + 60, os.path.join(self.profile, "DevToolsActivePort")
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError("chromium ended with status %d, see chromium.log" % self.process.returncode)
            try:
                port = open(where).read().split("\n")[0]
                pages = json.load(urllib.request.urlopen("http://127.0.0.1:%s/json" % port, timeout=10))
                return next(p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page")
            except (OSError, ValueError, StopIteration):
                time.sleep(0.1)
        raise RuntimeError("chromium opened no DevTools port within 60 s")

    # ---- the protocol ----

    def _read(self, deadline):
        self.socket.settimeout(max(0.05, deadline - time.monotonic()))
        message = json.loads(self.socket.recv())
        if "id" in message:
            self.answers[message["id"]] = message
            return
        method, p = message["method"], message["params"]
        if method == "Runtime.exceptionThrown":
            details = p["exceptionDetails"]
            self.complaints.append("exception: " + details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and p["type"] in ("error", "assert"):
            self.complaints.append("console: " + " ".join(str(a.get("value", a.get("description"))) for a in p["args"]))
        elif method == "Log.entryAdded" and p["entry"]["level"] == "error":
            self.complaints.append("%s: %s %s" % (p["entry"]["source"], p["entry"]["text"], p["entry"].get("url", "")))

    def call(self, method, **params):
        self.number += 1
        number, deadline = self.number, time.monotonic() + 30
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while number not in self.answers:
            self._read(deadline)
        answer = self.answers.pop(number)
        if "error" in answer:
            raise RuntimeError("%s: %s" % (method, answer["error"]["message"]))
        return answer["result"]

    def js(self, text):
        """What the expression gives, as JSON has it; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=text, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in result:
            raise RuntimeError("%s: %s" % (text, result["exceptionDetails"].get("exception", {}).get("description", "failed")))
        return result["result"].get("value")

    # ---- what a person does ----

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'", "the page " + url)

    def reload(self):
        self.js("window.beforeReload = true")
        self.call("Page.reload", ignoreCache=True)
        self.wait("!window.beforeReload && document.readyState === 'complete'", "the page again")

    def wait(self, text, what, seconds=30):
        """Until the expression is true; gives its value."""
        end, value = time.monotonic() + seconds, None
        while time.monotonic() < end:
            value = self.js("(() => { const v = (%s); return v instanceof Node ? true : v; })()" % text)
            if value:
                return value
            time.sleep(0.1)
        raise AssertionError("waited %g s in vain for %s; %s is %r" % (seconds, what, text, value))

    def click(self, selector):
        """A click at the middle of the element, which must be there to be hit."""
        at = self.js("""(() => {
            const e = document.querySelector(%s);
            if (!e) return null;
            e.scrollIntoView({block: "center"});
            const r = e.getBoundingClientRect(), x = r.left + r.width / 2, y = r.top + r.height / 2, hit = document.elementFromPoint(x, y);
            return hit && (e === hit || e.contains(hit) || hit.contains(e)) ? [x, y] : [];
        })()""" % json.dumps(selector))
        if not at:
            raise AssertionError("%s cannot be clicked: it is %s" % (selector, "not there" if at is None else "covered or hidden"))
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    def type(self, selector, text):
        """Instead of what the field holds."""
        self.js("(() => { const e = document.querySelector(%s); e.focus(); e.select(); })()" % json.dumps(selector))
        self.call("Input.insertText", text=text)

    def key(self, key, number, text=""):
        """number: the key's Windows code; text: what it would write, for keys that do."""
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=number, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=number)

    def files(self, selector, *paths):
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[os.path.abspath(p) for p in paths])

    def text(self, selector):
        return self.js("document.querySelector(%s).innerText" % json.dumps(selector))

    def size(self, width, height, phone=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone)

    def dark(self, on):
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if on else "light"}])

    def offline(self, on):
        self.call("Network.emulateNetworkConditions", offline=on, latency=0, downloadThroughput=-1, uploadThroughput=-1)

    def shot(self, name):
        with open(os.path.join(self.folder, name), "wb") as f:
            f.write(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
