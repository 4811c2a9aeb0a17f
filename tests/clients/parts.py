"""Parts of a check, each told in one line: `ok GROUP: what` or `not ok GROUP: what: why`.

    parts = Parts("openai")
    with parts("create"):
        assert ...
    sys.exit(parts.end())

A part that fails does not end the others. tests/clients.sh counts the lines.
"""

import sys
import time
import traceback


class Parts:
    def __init__(self, group):
        self.group, self.bad = group, 0

    def __call__(self, what):
        self.what = what
        return self

    def __enter__(self):
        self.begin = time.monotonic()

    def __exit__(self, kind, value, trace):
        took = time.monotonic() - self.begin
        if kind is None:
            print("ok %s: %s (%.1f s)" % (self.group, self.what, took), flush=True)
            return False
        if not issubclass(kind, Exception):
            return False
        self.bad += 1
        why = " ".join(str(value).split()) or kind.__name__
        print("not ok %s: %s: %s: %s" % (self.group, self.what, kind.__name__, why[:1000]), flush=True)
        line = traceback.extract_tb(trace)[-1]
        print("# %s:%d" % (line.filename, line.lineno), file=sys.stderr, flush=True)
        return True

    def end(self):
        return 1 if self.bad else 0
