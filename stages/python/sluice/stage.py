"""The process of a stage: opened, made ready, and job after job until it is drained."""
import ctypes
import os
import sys
import traceback
from ctypes import byref, c_bool, c_char_p, c_int, c_uint32, c_void_p

from . import errors
from .job import Job
from .library import Library


class Stage:
    """A stage that plays `role`. The dispatcher is told at once that the process is there; from
    then on the library's own threads keep its heartbeat, whatever Python does.

    role       "text", "image", "denoise", "decode" or "mux"
    on_device  True: where it can be, what it is handed lies in memory of its GPU, as torch tensors
               (the default where torch has been imported by the time of serve and the stage's
               device is a GPU)
    """

    def __init__(self, role, on_device=None):
        self._lib, self._at, self._on_device = Library(), c_void_p(), on_device
        words = [os.fsencode(w) for w in sys.argv]
        self._words = (c_char_p * (len(words) + 1))(*words, None)  # the library keeps some of them
        self.role = role
        sys.stdout.reconfigure(line_buffering=True)
        try:
            self._lib.open(byref(self._at), role.encode(), len(words), self._words)
        except errors.Error as e:
            self._end(e)
        self.device = self._lib.device(self._at).decode()
        self.instance = self._lib.instance(self._at)
        self.model = os.fsdecode(self._lib.model(self._at))
        n = c_int()
        given = self._lib.args(self._at, byref(n))
        self.args = [os.fsdecode(given[i]) for i in range(n.value)]
        self._stream = None
        sys.excepthook = self._while_loading

    def serve(self, work, weight_bytes=0):
        """Say READY, and call work(job) for each job. Ends the process when it is drained."""
        try:
            self._lib.ready(self._at, self._use_device(), int(weight_bytes))
            while True:
                self._lib.next(self._at)
                self._do(work)
        except errors.Error as e:  # Gone: drained
            self._end(e)

    def log(self, text, level="info"):
        """A line of the log, with the stage's name."""
        for line in str(text).splitlines():
            self._lib.log(level.encode(), line.encode())

    # ---- inside ----

    def _use_device(self):
        """Is memory of the GPU to be used? Then torch works on it, on a stream of the stage's own:
        a slot's order needs one that is not the default."""
        torch = sys.modules.get("torch")
        on = self._on_device if self._on_device is not None else torch is not None
        if not self.device.startswith("cuda:") or not on:
            return False
        import torch
        torch.cuda.set_device(self.device)
        self._stream = torch.cuda.Stream()
        torch.cuda.set_stream(self._stream)
        return True

    def _do(self, work):
        job = Job(self)
        try:
            work(job)
            job._finish()
        except Exception as e:
            self._fail(e)
            if errors.code_of(e) == "CUDA":
                self._end(e)  # the dispatcher starts another
        finally:
            job._close()

    def _fail(self, e):
        if not isinstance(e, errors.Error):
            self.log("".join(traceback.format_exception(type(e), e, e.__traceback__)), "error")
        err = self._lib.err(errors.code_of(e), errors.message_of(e))
        self._lib.fail(self._at, byref(err))

    def _while_loading(self, kind, e, trace):
        """An exception between here and serve: it will not get better, so the dispatcher is told."""
        if not isinstance(e, Exception):
            sys.__excepthook__(kind, e, trace)
            return
        self.log("".join(traceback.format_exception(kind, e, trace)), "error")
        code = errors.code_of(e)
        self._end(errors.Error("ARG" if code == "INTERNAL" else code, errors.message_of(e)))

    def _end(self, e):
        err = self._lib.err(errors.code_of(e), errors.message_of(e))
        sys.stdout.flush()
        sys.stderr.flush()
        status = self._lib.close(byref(self._at), byref(err))
        # at once: threads of libraries may still run, and nothing is left to be done
        os._exit(status)


class Filter(Stage):
    """A stage that the configuration puts into a hand-over:
    `filters: ( { on = "latents"; program = "python3 mine.py"; } );`

    on         "text", "image", "latents" or "frames"
    name       what the configuration calls it
    on_device  as of a Stage
    """

    def __init__(self, on_device=None):
        super().__init__("filter", on_device)
        self.on = self._lib.filters(self._at).decode()
        self.name = os.environ["SLUICE_FILTER"]

    def serve(self, work):
        """Say READY, and call work(job, x) for each hand-over, of frames for each chunk. x is the
        array, read-only: latents, or frames uint8 [n, height, width, 3]; of text and image, which
        have several, a dict of them. What it returns goes on: the like of x, of a dict what has
        changed; None: x as it came."""
        super().serve(lambda job: job._filter(self.on, work))
