"""Filters in Python in a real pipeline, those of examples/ among them."""
import json
import os
import sys
import unittest

import common
import numpy as np
from common import TOP, RunTest


def example(name):
    return f"{sys.executable} {os.path.join(TOP, 'examples', name)}"


def tensors(path):
    """The tensors of a safetensors file, as arrays."""
    kinds = {"F32": "<f4", "U8": "u1", "I64": "<i8"}
    with open(path, "rb") as f:
        data = f.read()
    n = int.from_bytes(data[:8], "little")
    head, body = json.loads(data[8 : 8 + n]), data[8 + n :]
    return {name: np.frombuffer(body[slice(*t["data_offsets"])], kinds[t["dtype"]]).reshape(t["shape"])
            for name, t in head.items() if name != "__metadata__" and t["dtype"] in kinds}


class FilterTest(RunTest):
    def filtered(self, *filters, **programs):
        self.conf(f"filters: ( {', '.join(filters)} );", **programs)

    def dumped(self, file):
        return tensors(self.path(f"dump/{file}.safetensors"))

    def changes(self):
        with open(self.path("dump/dump.json"), encoding="utf-8") as f:
            return {f["name"]: f["changed"] for f in json.load(f)["filters"]}

    def test_examples_are_short(self):
        for name, most in (("clamp.py", 10), ("upscale.py", 16)):
            with open(os.path.join(TOP, "examples", name), encoding="utf-8") as f:
                body = f.read().split('"""', 2)[2]
            lines = [line for line in body.splitlines() if line.strip() and not line.strip().startswith("#")]
            self.assertLessEqual(len(lines), most, name)

    def test_clamp(self):
        self.filtered(f'{{ on = "latents"; program = "{example("clamp.py")}"; }}')
        self.run_it("--dump", self.path("dump"), "--set", "limit=1")
        raw, clamped = self.dumped("denoise")["latents"], self.dumped("denoise.clamp")["latents"]
        middle, reach = raw.mean(axis=(1, 2, 3), keepdims=True), raw.std(axis=(1, 2, 3), keepdims=True)
        self.assertTrue((np.abs(raw - middle) > 1.5 * reach).any())
        self.assertTrue((clamped == np.clip(raw, middle - reach, middle + reach)).all())
        self.assertEqual(self.changes(), {"clamp": True})

    def upscaled(self, program):
        self.filtered(f'{{ on = "frames"; name = "upscale"; program = "{program}"; scale = 2; }}')
        self.run_it("--dump", self.path("dump"))
        self.assertGreater(len(self.video()), 1000)
        return self.dumped("frames")["frames"], self.dumped("frames.upscale")["frames"]

    def test_upscale(self):
        import torch
        small, large = self.upscaled(example("upscale.py"))
        self.assertEqual(large.shape, (17, 128, 192, 3))
        x = torch.from_numpy(small.copy()).permute(0, 3, 1, 2).float()
        want = torch.nn.functional.interpolate(x, scale_factor=2, mode="bicubic", antialias=True)
        self.assertTrue((want.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy() == large).all())

    def test_upscale_without_torch(self):
        os.mkdir(self.path("hide"))
        self.write("hide/torch.py", "raise ImportError('hidden')\n")
        small, large = self.upscaled(f"env PYTHONPATH={self.path('hide')} {example('upscale.py')}")
        self.assertTrue((small.repeat(2, 1).repeat(2, 2) == large).all())

    def test_what_a_filter_sees(self):
        """Of several tensors a dict, of which it gives what it has changed; chunks by number; who
        returns nothing has only looked."""
        told = self.path("told")
        text = self.python(f"""
            import json
            import sluice
            stage = sluice.Filter()
            def work(job, x):
                json.dump([stage.on, stage.name, sorted(x), list(x["cond"].shape), bool(x["cond"].flags.writeable), stage.args], open({told + "text"!r}, "w"))
                return {{"uncond": 0 * x["uncond"]}}
            stage.serve(work)
            """, "quiet.py")
        frames = self.python(f"""
            import json
            import sluice
            seen = []
            def work(job, frames):
                seen.append([job.index, job.first, frames.shape[0]])
                json.dump(seen, open({told + "frames"!r}, "w"))
            sluice.Filter().serve(work)
            """, "count.py")
        self.filtered(f'{{ on = "text"; program = "{text}"; args = ["a", "b"]; }}', f'{{ on = "frames"; program = "{frames}"; }}')
        self.run_it("--dump", self.path("dump"))
        with open(told + "text", encoding="utf-8") as f:
            self.assertEqual(json.load(f), ["text", "quiet", ["cond", "uncond"], [512, 128], False, ["a", "b"]])
        with open(told + "frames", encoding="utf-8") as f:
            self.assertEqual(json.load(f), [[0, 0, 1], [1, 1, 4], [2, 5, 4], [3, 9, 4], [4, 13, 4]])
        before, after = self.dumped("text"), self.dumped("text.quiet")
        self.assertTrue((before["cond"] == after["cond"]).all() and before["uncond"].any() and not after["uncond"].any())
        self.assertEqual(self.changes(), {"quiet": True, "count": False})

    def test_a_stage_of_ones_own_beside(self):
        """Filters stand between stages of one's own, too."""
        decode = f"{sys.executable} {os.path.join(TOP, 'examples', 'linear_decode.py')}"
        mux = self.python("""
            import sluice
            def work(job):
                shapes = [chunk.shape for chunk in job.received()]
                open(job.spec["output"], "w").write(str(shapes[-1]))
            sluice.Stage("mux").serve(work)
            """, "mux.py")
        self.filtered(f'{{ on = "frames"; program = "{example("upscale.py")}"; scale = 2; }}',
                      f'{{ on = "latents"; program = "{example("clamp.py")}"; }}', decode=decode, mux=mux)
        self.run_it("--dump", self.path("dump"))
        self.assertEqual(self.video(), b"(4, 128, 192, 3)")
        self.assertEqual(self.dumped("frames.upscale")["frames"].shape, (17, 128, 192, 3))

    # ---- mistakes ----

    def fails(self, group, text, said):
        program = self.python("import numpy as np\nimport sluice\n" + common.textwrap.dedent(text))
        self.filtered(f'{{ program = "{program}"; {group} }}')
        log = self.run_it(want=1)
        self.assertIn(said, [line for line in log.splitlines() if line.startswith("sluice: ")][-1])

    def test_another_shape(self):
        self.fails('on = "latents";', "sluice.Filter().serve(lambda job, x: x[:, :1])",
                   "failed: mine: latents is F32 [16, 1, 8, 12], want F32 [16, 5, 8, 12], dense")

    def test_frames_of_another_size(self):
        self.fails('on = "frames"; scale = 2;', "sluice.Filter().serve(lambda job, x: x)",
                   "failed: mine: frames are [1, 64, 96, 3], want [1, 128, 192, 3]")

    def test_an_exception(self):
        self.fails('on = "frames";', """
            def work(job, frames):
                return frames / (job.index - 2)
            sluice.Filter().serve(work)
            """, "failed: mine: frames are float64, want uint8")

    def test_no_number(self):
        self.fails('on = "latents";', "sluice.Filter().serve(lambda job, x: x * np.float32('nan'))",
                   "failed: mine: latents [16, 5, 8, 12] has NaN or infinity at element 0")

    def test_not_a_filter(self):
        """A stage in a filter's place, and a filter in a stage's."""
        program = self.python("import sluice\nsluice.Stage('decode').serve(print)\n")
        self.filtered(f'{{ on = "latents"; program = "{program}"; }}')
        self.assertIn("says HELLO as decode, want mine", self.run_it(want=1))
        program = self.python("import sluice\nsluice.Filter().serve(print)\n", "other.py")
        self.filtered(decode=program)
        self.assertIn('it is a filter, and is not started as one of "filters"', self.run_it(want=1))


if __name__ == "__main__":
    unittest.main()
