#!/usr/bin/env python3
"""gpu_python.py - stages in PyTorch on a GPU: hand-overs through slots of device memory give the
bytes that they give by the spool, nothing of them is copied to the host on the way in, and nothing
leaks in 1,000 jobs.

    make && make plugin && python3 tests/gpu_python.py [-v] [TEST...]

with a python3 that has torch (for this GPU) and numpy. SLUICE_BIN: where the programs and the
plug-in are (default bin). GPU_DEVICE: default cuda:0. LEAK_JOBS: default 1000. The last line is
`N passed, N failed`."""
import json
import os
import re
import subprocess
import sys
import unittest

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(TOP, "stages", "python"), os.path.join(TOP, "stages", "python", "tests")]
os.environ["PYTHONPATH"] = os.path.join(TOP, "stages", "python")

from common import BIN, GOLDEN, RunTest  # noqa: E402

DEVICE = os.environ.get("GPU_DEVICE", "cuda:0")
LEAK_JOBS = int(os.environ.get("LEAK_JOBS", "1000"))

# Latents to frames on the GPU; tells where its input lay, and what the process has.
DECODE = """
    import json, os, subprocess, sys
    import sluice
    stage = sluice.Stage("decode")
    import torch
    torch.set_grad_enabled(False)
    def told(**of):
        with open(stage.args[0], "a") as f:
            f.write(json.dumps(of) + "\\n")
    def rss():
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("VmRSS:"))
    def on_device():
        # MiB that this pipeline's processes have on the GPU, whoever else is on it
        of = subprocess.run(["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"], capture_output=True, text=True).stdout
        total = 0
        for line in of.splitlines():
            pid, used = line.split(",")
            try:
                with open(f"/proc/{int(pid)}/stat") as f:
                    ours = int(f.read().rpartition(")")[2].split()[1]) == os.getppid()
            except OSError:
                ours = False
            total += int(used) if ours else 0
        return total
    def work(job):
        at = job._input("latents")
        x = job.tensor("latents")
        assert x.is_cuda and x.dtype in (torch.float32, torch.bfloat16), (x.device, x.dtype)
        torch.cuda.synchronize()
        told(job=job.number, in_slot=isinstance(at, torch.Tensor), same=isinstance(at, torch.Tensor) and at.data_ptr() == x.data_ptr(),
             cached=torch.cuda.memory_reserved(), fds=len(os.listdir("/proc/self/fd")), rss=rss(),
             device=on_device() if job.number % 100 == 0 else 0)
        x = x.float()
        for t in range(x.shape[1]):
            with job.turn(number=t + 1, more=t + 1 < x.shape[1]):
                rgb = (128 + 48 * x[:3, t]).round().clamp(0, 255).to(torch.uint8)
                rgb = rgb.permute(1, 2, 0).repeat_interleave(8, 0).repeat_interleave(8, 1)
                frames = rgb.expand(4 if t else 1, *rgb.shape)
            job.send(frames)
    stage.serve(work)
    """

# Noise and the condition's mean, as latents: no network, but all of a denoiser's hand-overs.
DENOISE = """
    import sluice
    stage = sluice.Stage("denoise")
    import torch
    torch.set_grad_enabled(False)
    def work(job):
        x = torch.from_numpy(job.noise()).to(stage.device)
        for name in job.inputs:
            x = x + job.tensor(name).float().mean()
        for i, _ in job.steps(range(job.spec["steps"])):
            x = 0.9 * x
        job.give(latents=x)
    stage.serve(work)
    """


class GpuTest(RunTest):
    def conf_on_gpu(self, more="", **own):
        """All stages on the GPU but mux; `own`: a stage's program, and what stands behind it."""
        groups = []
        for role in ("text", "image", "denoise", "decode"):
            group = f'name = "{role}"; device = "{DEVICE}";'
            if role in own:
                group += f' program = "{self.python(own[role], role + ".py")}"; args = ["{self.path(role + ".told")}"];'
            groups.append("{ " + group + " }")
        self.write("run.cfg", 'run: { log = "debug"; };\nvideo: { preset = "ultrafast"; threads = 2; };\n' + more
                   + f"\nstages: ( {', '.join(groups)}, {{ name = \"mux\"; }} );\n")

    def told(self, role):
        with open(self.path(role + ".told"), encoding="utf-8") as f:
            return [json.loads(line) for line in f]

    def frames(self, dump):
        with open(os.path.join(dump, "frames.safetensors"), "rb") as f:
            return f.read()

    def replay(self, dump, to):
        words = [os.path.join(BIN, "sluice"), "replay", dump, "--from", "decode", "--quiet", "--conf", self.path("run.cfg"),
                 "--model", os.path.join(GOLDEN, "model"), "--dump", to, "-o", self.path("again.mp4")]
        done = subprocess.run(words, stderr=subprocess.PIPE, cwd=TOP, timeout=180, env={**os.environ, "TMPDIR": self.dir})
        self.assertEqual(done.returncode, 0, done.stderr.decode()[-4000:])

    def two_jobs(self, dump):
        """Two of the same, one after the other's end, the second dumped: the log. The first may come
        by the file, since a stage that still imports torch opens no slot."""
        command = self.command("--jobs", "-")
        at = command.index("-o")
        del command[at : at + 2]
        run = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=TOP, env={**os.environ, "TMPDIR": self.dir}, text=True)
        feed = lambda **job: (run.stdin.write(json.dumps(job) + "\n"), run.stdin.flush())
        feed(output=dump + ".1.mp4")
        log = []
        for line in run.stderr:
            log.append(line)
            if re.search(r" dispatch\[\d+\] debug: job 1: ", line):
                feed(output=dump + ".2.mp4", dump=dump)
                run.stdin.close()
        run.stderr.close()
        self.assertEqual(run.wait(timeout=180), 0, "".join(log)[-4000:])
        return "".join(log)

    def test_decode_takes_a_slot(self):
        """Sluice's denoiser to PyTorch's decoder: through a slot of device memory, then by the file."""
        self.conf_on_gpu(decode=DECODE)
        dump, again = self.path("dump"), self.path("again")
        self.two_jobs(dump)
        self.replay(dump, again)
        _, by_slot, by_file = self.told("decode")
        self.assertTrue(by_slot["in_slot"], "the latents came by the file")
        self.assertTrue(by_slot["same"], "torch has a copy of the slot")
        self.assertFalse(by_file["in_slot"])
        self.assertEqual(self.frames(dump), self.frames(again))

    def test_denoise_gives_a_slot(self):
        """PyTorch's denoiser to Sluice's decoder, and to PyTorch's."""
        for own in ({"denoise": DENOISE}, {"denoise": DENOISE, "decode": DECODE}):
            with self.subTest(sorted(own)):
                self.conf_on_gpu(**own)
                dump, again = self.path(f"dump{len(own)}"), self.path(f"again{len(own)}")
                log = self.two_jobs(dump)
                self.assertRegex(log, r"<- denoise DONE job=2 attempt=\d+ out=\[2:[0-9a-f]", "the latents went by the file")
                self.replay(dump, again)
                self.assertEqual(self.frames(dump), self.frames(again))
        self.assertTrue(self.told("decode")[1]["in_slot"])

    def test_killed(self):
        """A decoder that is killed with a slot open: the job goes on from the file, with its bytes."""
        self.conf_on_gpu(decode=DECODE)
        self.run_it("--dump", self.path("dump"))
        want = self.frames(self.path("dump"))
        command = self.command("--dump", self.path("killed"))
        run = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=TOP, env={**os.environ, "TMPDIR": self.dir}, text=True)
        pid, killed, log = None, 0, []
        for line in run.stderr:
            log.append(line)
            found = re.search(r" decode is process (\d+)", line)
            pid = int(found.group(1)) if found else pid
            if "<- decode CHUNK" in line and "index=0 " in line and not killed:
                os.kill(pid, 9)
                killed += 1
        run.stderr.close()
        self.assertEqual(run.wait(timeout=180), 0, "".join(log)[-4000:])
        self.assertEqual(self.frames(self.path("killed")), want)

    def test_nothing_leaks(self):
        """Device memory, descriptors and memory of a PyTorch decoder after many jobs are those after
        some."""
        self.conf_on_gpu(f"limits: {{ jobs = {LEAK_JOBS + 8}; }};", denoise=DENOISE, decode=DECODE)
        jobs = self.write("jobs.jsonl", "".join(json.dumps({"output": self.path(f"{i}.mp4"), "seed": i}) + "\n" for i in range(LEAK_JOBS)))
        command = self.command("--jobs", jobs, frames=5, steps=1)
        at = command.index("-o")
        del command[at : at + 2]
        log = self.path("leak.log")
        with open(log, "w", encoding="utf-8") as f:
            done = subprocess.run(command, stderr=f, cwd=TOP, timeout=3600, env={**os.environ, "TMPDIR": self.dir})
        with open(log, encoding="utf-8", errors="replace") as f:
            self.assertEqual(done.returncode, 0, f.read()[-4000:])
        seen = self.told("decode")
        self.assertEqual(len(seen), LEAK_JOBS)
        since = [s["in_slot"] for s in seen]
        since = since[since.index(True) :]  # before, the decoder imported torch
        self.assertGreater(len(since), LEAK_JOBS // 2)
        self.assertGreater(sum(since), len(since) * 9 // 10, "most come through a slot")
        early, late = seen[LEAK_JOBS // 10], seen[-1]
        device = [s["device"] for s in seen if s["device"]]
        print(f"{LEAK_JOBS} jobs: MiB of the device {device}, cached {early['cached']} -> {late['cached']}, "
              f"descriptors {early['fds']} -> {late['fds']}, resident {early['rss']} -> {late['rss']} KiB", file=sys.stderr)
        self.assertGreater(len(device), 1, "nvidia-smi tells no memory of these processes")
        self.assertLessEqual(device[-1] - device[0], 32, "device memory, MiB")
        self.assertLess(late["cached"] - early["cached"], 16 << 20, "torch's own")
        self.assertLessEqual(late["fds"], early["fds"] + 2, "descriptors")
        self.assertLess(late["rss"] - early["rss"], 64 << 10, "resident memory, KiB")


if __name__ == "__main__":
    result = unittest.main(exit=False, verbosity=2).result
    bad = len({str(getattr(test, "test_case", test)) for test, _ in result.failures + result.errors})
    print(f"{result.testsRun - bad} passed, {bad} failed")
    sys.exit(1 if bad else 0)
