"""What the tests share: the programs, a run of them, and stages that a test writes down."""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import unittest

TOP = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
BIN = os.path.abspath(os.environ.get("SLUICE_BIN", os.path.join(TOP, "bin")))
GOLDEN = os.path.join(TOP, "tests", "golden", "tiny-i2v")
ROLES = ("text", "image", "denoise", "decode", "mux")
os.environ["SLUICE_STAGE_LIB"] = os.path.join(BIN, "libsluice-stage.so.1")


def protocol():
    return json.loads(subprocess.check_output([os.path.join(BIN, "sluice"), "protocol", "--json"]))


class RunTest(unittest.TestCase):
    """A test with a folder of its own, in which `sluice run` runs."""

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="sluice-python-")
        self.addCleanup(shutil.rmtree, self.dir, True)

    def path(self, name):
        return os.path.join(self.dir, name)

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as f:
            f.write(textwrap.dedent(text))
        return self.path(name)

    def python(self, text, name="mine.py"):
        """A stage of this text, as the configuration's `program`."""
        return f"{sys.executable} {self.write(name, text)}"

    def conf(self, more="", **programs):
        """Stages with these programs, or groups ("program = ...; args = [...];")."""
        groups = []
        for role in ROLES:
            own = programs.get(role, "")
            if own and "=" not in own:
                own = f'program = "{own}";'
            groups.append(f'{{ name = "{role}"; {own} }}')
        return self.write("run.cfg", 'run: { log = "debug"; };\nvideo: { preset = "veryfast"; threads = 2; };\n'
                          + ("" if "supervise" in more else "supervise: { backoff_ms = 5; };\n")
                          + f"{more}\nstages: ( {', '.join(groups)} );\n")

    def command(self, *options, frames=17, steps=2):
        words = [os.path.join(BIN, "sluice"), "run", "--quiet", "--conf", self.path("run.cfg"), "--model", os.path.join(GOLDEN, "model"),
                 "--image", os.path.join(GOLDEN, "i2v-96x64x9.png"), "--prompt", "A cat.", "--width", "96", "--height", "64",
                 "--frames", str(frames), "--steps", str(steps), "--seed", "7", "-o", self.path("out.mp4")]
        return words + list(options)

    def run_it(self, *options, want=0, **numbers):
        """The log of a run that ends with this status."""
        env = {**os.environ, "TMPDIR": self.dir}
        done = subprocess.run(self.command(*options, **numbers), stderr=subprocess.PIPE, env=env, cwd=TOP, timeout=120)
        log = done.stderr.decode()
        self.assertEqual(done.returncode, want, log[-4000:])
        return log

    def video(self):
        with open(self.path("out.mp4"), "rb") as f:
            return f.read()
