"""Stages in Python in a real pipeline: what they are handed and hand on, and what becomes of their
mistakes."""
import json
import os
import re
import unittest

import common
from common import TOP, RunTest

LINEAR = os.path.join(TOP, "examples", "linear_decode.py")


class StageTest(RunTest):
    def test_examples_are_short(self):
        for name, most in (("linear_decode.py", 12), ("diffusers_denoise.py", 60)):
            with open(os.path.join(TOP, "examples", name), encoding="utf-8") as f:
                body = f.read().split('"""', 2)[2]
            lines = [line for line in body.splitlines() if line.strip() and not line.strip().startswith("#")]
            self.assertLessEqual(len(lines), most, name)

    def test_what_a_decoder_sees(self):
        """Parameters, arguments, shapes; a view of a slot is read-only; prints have the stage's name."""
        told = self.path("told.json")
        program = self.python(f"""
            import json, sys
            import numpy as np
            import sluice
            stage = sluice.Stage("decode")
            def work(job):
                x = job["latents"]
                copy = x.copy()
                json.dump({{"args": stage.args, "params": job.params, "steps": job.spec["steps"], "inputs": job.inputs,
                           "shape": x.shape, "dtype": str(x.dtype), "writable": bool(x.flags.writeable),
                           "outputs": job.outputs, "chunks": job.chunks, "device": stage.device, "contains": "clip" in job,
                           "noise": job.noise().shape}}, open({told!r}, "w"))
                print("from print")
                sys.stderr.write("no newline at the end, then a bar 10%\\r100%\\n")
                stage.log("from log", "warn")
                job.taken()
                for t in range(job.chunks):
                    with job.chunk(4 if t else 1) as rgb:
                        rgb[...] = 50 * t
            stage.serve(work)
            """)
        self.conf(decode=f'program = "{program}"; args = ["--taste", "sweet", "last"];')
        log = self.run_it("--set", "strength=0.5", "--set", "name=a b", "--set", "list=[1, {}]")
        with open(told, encoding="utf-8") as f:
            told = json.load(f)
        self.assertEqual(told, {"args": ["--taste", "sweet", "last"], "params": {"strength": 0.5, "name": "a b", "list": [1, {}]},
                                "steps": 2, "inputs": ["latents"], "shape": [16, 5, 8, 12], "dtype": "float32", "writable": False,
                                "outputs": {"frames": {"rgb": [4, 64, 96, 3]}}, "chunks": 5, "device": "cpu", "contains": False,
                                "noise": [16, 5, 8, 12]})
        for line in (r"decode\[\d+\] info: from print", r"decode\[\d+\] info: no newline at the end, then a bar 10%\n",
                     r"decode\[\d+\] info: 100%\n", r"decode\[\d+\] warn: from log"):
            self.assertRegex(log, line)

    def test_text_image_and_mux(self):
        """The other roles: what text and image make goes to C's denoiser, C's frames come chunk by
        chunk."""
        text = self.python("""
            import numpy as np
            import sluice
            def work(job):
                shapes = job.outputs["text"]
                job.give(**{name: np.full(shape, 0.01, np.float32) for name, shape in shapes.items()})
            sluice.Stage("text").serve(work)
            """, "text.py")
        mux = self.python("""
            import numpy as np
            import sluice
            def work(job):
                shapes = [chunk.shape for chunk in job.received()]
                assert [s[0] for s in shapes] == [1, 4, 4, 4, 4], shapes
                open(job.spec["output"], "w").write(f"{len(shapes)} chunks")
            sluice.Stage("mux").serve(work)
            """, "mux.py")
        self.conf(text=text, mux=mux)
        self.run_it()
        self.assertEqual(self.video(), b"5 chunks")

    def test_two_jobs_and_replay(self):
        """Hand-overs by slot and by file give the same bytes; a stage works on job after job."""
        self.conf(decode=f"{common.sys.executable} {LINEAR}")
        self.run_it("--dump", self.path("dump"))
        first = self.video()
        os.remove(self.path("out.mp4"))
        words = self.command()
        words[1:4] = ["replay", self.path("dump"), "--from", "decode", "--conf", self.path("run.cfg")]
        replay = [words[0], "replay", self.path("dump"), "--from", "decode", "--quiet", "--conf", self.path("run.cfg"),
                  "--model", os.path.join(common.GOLDEN, "model"), "-o", self.path("out.mp4")]
        common.subprocess.run(replay, check=True, cwd=TOP, timeout=60, stderr=common.subprocess.DEVNULL)
        self.assertEqual(self.video(), first)
        jobs = self.write("jobs.jsonl", "".join(json.dumps({"output": self.path(f"{i}.mp4")}) + "\n" for i in range(3)))
        command = self.command("--jobs", jobs)
        at = command.index("-o")
        del command[at : at + 2]
        common.subprocess.run(command, check=True, cwd=TOP, timeout=60, stderr=common.subprocess.DEVNULL)
        for i in range(3):
            with open(self.path(f"{i}.mp4"), "rb") as f:
                self.assertEqual(f.read(), first)

    # ---- mistakes ----

    def fails(self, text, *said, **numbers):
        """A decoder of this body ends the job with a line in which all of `said` is."""
        program = self.python("import sluice\n" + common.textwrap.dedent(text))
        self.conf(decode=program, **numbers)
        log = self.run_it(want=1)
        last = [line for line in log.splitlines() if line.startswith("sluice: ")][-1]
        for part in said:
            self.assertIn(part, last)
        return log

    def test_an_exception(self):
        log = self.fails("""
            def helper():
                return 1 / 0
            def work(job):
                helper()
            sluice.Stage("decode").serve(work)
            """, "failed: decode: ZeroDivisionError: division by zero (mine.py:4)")
        self.assertRegex(log, r"decode\[\d+\] error: Traceback")
        self.assertRegex(log, r"decode\[\d+\] error:     return 1 / 0")

    def test_nothing_given(self):
        self.fails("""
            sluice.Stage("decode").serve(lambda job: None)
            """, "failed: decode: the job ended after 0 chunks of frames, want 5")

    def test_a_wrong_shape(self):
        self.fails("""
            import numpy as np
            sluice.Stage("decode").serve(lambda job: job.send(np.zeros((1, 8, 8, 3), np.uint8)))
            """, "failed: decode: frames are [1, 8, 8, 3], want [1, 64, 96, 3]")

    def test_an_unknown_tensor(self):
        self.fails("""
            sluice.Stage("decode").serve(lambda job: job["clip"])
            """, 'failed: decode: no tensor "clip" comes in this job, want latents')

    def test_an_exception_while_loading(self):
        log = self.fails("""
            stage = sluice.Stage("decode")
            import no_such_module
            """, "failed: decode: ModuleNotFoundError: No module named 'no_such_module' (mine.py:4)")
        self.assertEqual(log.count("says hello"), 5, "it is not tried again")

    def test_an_unknown_role(self):
        self.fails('sluice.Stage("decoder")\n', "ended 6 times in a row (exit status 1): giving up")

    def test_an_own_error(self):
        self.fails("""
            def work(job):
                raise sluice.Error("ARG", "strength is 7, want 0 to 1")
            sluice.Stage("decode").serve(work)
            """, "failed: decode: strength is 7, want 0 to 1")

    def test_heartbeats_go_on(self):
        """An import, or a call of C, that lets no other thread of Python run is no stall."""
        program = self.python("""
            import ctypes
            import sluice
            stage = sluice.Stage("decode")
            ctypes.PyDLL(None).sleep(4)  # holds the interpreter's lock
            def work(job):
                ctypes.PyDLL(None).sleep(4)
                for t in range(job.chunks):
                    with job.chunk(4 if t else 1) as rgb:
                        rgb[...] = 0
            stage.serve(work)
            """)
        self.conf("supervise: { stall_s = 2; heartbeat_ms = 100; };", decode=program)
        log = self.run_it()
        said_hello = set(re.findall(r"decode\[(\d+)\] on cpu says hello", log))  # a busy machine may not come so far
        self.assertFalse(said_hello & set(re.findall(r"decode\[(\d+)\] gave no sign of life", log)))


if __name__ == "__main__":
    unittest.main()
