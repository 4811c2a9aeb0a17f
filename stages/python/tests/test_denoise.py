"""diffusers' transformer as the denoiser gives the golden latents."""
import json
import os
import unittest

import common
from common import GOLDEN, TOP, RunTest
from safetensors.torch import load_file


class DenoiseTest(RunTest):
    def test_golden(self):
        with open(os.path.join(GOLDEN, "prompts.json"), encoding="utf-8") as f:
            prompts = json.load(f)
        for name in ("i2v-96x64x9", "i2v-64x96x13-nocfg"):
            with self.subTest(name), open(os.path.join(GOLDEN, name + ".json"), encoding="utf-8") as f:
                case = json.load(f)
                self.conf(denoise=f"{common.sys.executable} {os.path.join(TOP, 'examples', 'diffusers_denoise.py')}")
                dump, base = self.path(name), os.path.join(GOLDEN, name)
                self.run_it("--width", str(case["w"]), "--height", str(case["h"]), "--guidance", str(case["cfg"]),
                            "--prompt", prompts[case["prompt"]], "--negative", prompts[case["neg"]], "--image", base + ".png",
                            "--noise", base + ".safetensors", "--set", "rope=bfloat16", "--dump", dump,
                            frames=case["f"], steps=case["steps"])
                got = load_file(os.path.join(dump, "denoise.safetensors"))["latents"]
                want = load_file(base + ".safetensors")[f"step.{case['steps'] - 1}.latents"]
                off = float((got - want).norm() / want.norm())
                # float32 in another order of summation; sluice-denoise is held to 1e-4
                self.assertLessEqual(off, 1e-5, f"{name}: relative L2")


if __name__ == "__main__":
    unittest.main()
