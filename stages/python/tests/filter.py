"""A filter for tests/test_filters.c: what tests/helper_filter.c does with the same words in `args`."""
import os
import signal
import time

import numpy as np
import sluice

stage = sluice.Filter()
words = dict(zip(stage.args, stage.args[1:]))
calls = 0


def die_once(file):
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def work(job, x):
    global calls
    calls += 1
    if "die" in words and calls == int(stage.args[stage.args.index("die") + 2]):
        die_once(words["die"])
    if "look" in words:
        with open(words["look"], "a", encoding="utf-8") as f:
            f.write(f"{stage.on} {-1 if job.index is None else job.index} {np.mean(x, dtype=float):.9g}\n")
    while "hold" in words and not os.path.exists(words["hold"]):
        time.sleep(0.01)
        job.check()
    if "times" not in words:
        return None
    times = float(words["times"])
    return x + np.uint8(times) if stage.on == "frames" else x * np.float32(times)


stage.serve(work)
