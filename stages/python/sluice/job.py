"""One job: what the stage is handed, what it hands on, and what it says meanwhile."""
import contextlib
import ctypes
import json
import os
import sys
from ctypes import byref, c_bool, c_int, c_uint32

import numpy

from . import errors
from .library import SPECS, Tensor, array_over, shape_of, tensor_over


class Job:
    """spec      job.json as a dict: width, height, frames, steps, guidance, prompt, ...
    params    what the user gave with --set, a dict
    dir       the job's folder: pictures, noise, finished hand-overs
    number, attempt
    inputs    names of the tensors that it is handed whole
    outputs   hand-overs that it gives: {"latents": {"latents": (16, 3, 8, 12)}}
    chunks    how many chunks of frames the video has
    index     of a filter of frames: which of them this one is, from 0; first: its first frame
    """

    index = first = None

    def __init__(self, stage):
        self._stage, self._lib, self._at = stage, stage._lib, stage._at
        attempt = c_uint32()
        self.number, self.attempt = self._lib.job(self._at, byref(attempt)), attempt.value
        self.dir = os.fsdecode(self._lib.dir(self._at))
        with open(os.path.join(self.dir, "job.json"), encoding="utf-8") as f:
            self.spec = json.load(f)
        self.params = self.spec.get("params") or {}
        self.chunks = self._lib.chunks(self._at)
        handed, self.outputs = self._specs(True), self._specs(False)
        self.inputs = [name for tensors in handed.values() for name in tensors]

    def _specs(self, handed):
        specs = SPECS()
        all = {}
        for i in range(self._lib.specs(self._at, handed, specs)):
            s = specs[i]
            all.setdefault(s.handover.decode(), {})[s.name.decode()] = shape_of(s)
        return all

    def log(self, text, level="info"):
        self._stage.log(text, level)

    # ---- what it is handed ----

    def __contains__(self, name):
        return name in self.inputs

    def __getitem__(self, name):
        """The tensor as a read-only array over its slot: until taken() or the job's end. A tensor
        in memory of a GPU is a torch tensor, likewise."""
        return self._input(name)

    def _input(self, name):
        t, stream = Tensor(), self._stream()
        self._lib.input(self._at, name.encode(), stream, byref(t))
        if self._lib.lies_on_device(self._at, name.encode()):
            return _on_device(t, self._lib.dtypes, self._stage.device)
        return array_over(t, self._lib.dtypes, False)

    def tensor(self, name):
        """The tensor for torch, on the stage's device: over its slot where it lies there, else a
        copy."""
        import torch
        x = self._input(name)
        if isinstance(x, torch.Tensor):
            return x
        return torch.from_numpy(x.copy()).to(self._stage.device)

    def taken(self):
        """All inputs are read: the next job's may come into their slots. The arrays that were over
        them must not be used any more. May be left out."""
        self._lib.taken(self._at, self._stream())

    def noise(self):
        """The noise that denoising starts from, an array of the latents' shape: the user's file,
        or the numbers that torch.Generator("cpu") gives for the seed."""
        t = Tensor()
        self._lib.noise(self._at, byref(t))
        return array_over(t, self._lib.dtypes, False).copy()

    def received(self):
        """Chunks of frames as they come, each an array over its slot until the next."""
        index, chunks, t = c_int(), c_int(), Tensor()
        while True:
            getattr(self._lib, "await")(self._at, byref(index), byref(chunks), byref(t))
            yield array_over(t, self._lib.dtypes, False)
            self._lib.drop(self._at)
            self.progress(index.value + 1, chunks.value)
            if index.value + 1 == chunks.value:
                return

    # ---- what it hands on ----

    def give(self, **tensors):
        """Hand over what goes whole, all tensors of it, by their names: arrays or torch tensors.
        They are copied."""
        name = next((h for h, of in self.outputs.items() if set(of) == set(tensors)), None)
        if name is None:
            want = " or ".join(", ".join(of) for of in self.outputs.values()) or "nothing"
            raise errors.Error("ARG", f"give: {', '.join(tensors)}, want {want} (together)")
        ordered = [tensors[n] for n in self.outputs[name]]
        self._fill_device_slot(name, ordered)
        host = [numpy.ascontiguousarray(_to_host(x), numpy.float32) for x in ordered]
        of = (Tensor * len(host))(*(tensor_over(a, self._lib.dtypes) for a in host))
        self._lib.give(self._at, name.encode(), of)

    def send(self, frames):
        """Hand on the next chunk: 8-bit RGB [n, height, width, 3], an array or a torch tensor. Waits
        for a free slot."""
        frames = frames if _is_torch(frames) else numpy.asarray(frames)
        if not str(frames.dtype).endswith("uint8"):
            raise errors.Error("SHAPE", f"frames are {frames.dtype}, want uint8")
        with self.chunk(frames.shape[0]) as slot:
            if slot.shape != tuple(frames.shape):
                raise errors.Error("SHAPE", f"frames are {list(frames.shape)}, want {list(slot.shape)}")
            if _is_torch(frames):
                import torch
                torch.from_numpy(slot).copy_(frames, non_blocking=True)
            else:
                slot[...] = frames

    @contextlib.contextmanager
    def chunk(self, n):
        """As send, for n frames that are computed into the slot itself: `with` gives the array."""
        t = Tensor()
        self._lib.chunk(self._at, n, self._stream(), byref(t))
        yield array_over(t, self._lib.dtypes, True)
        self._lib.send(self._at)

    # ---- what it says ----

    @property
    def cancelled(self):
        return self._lib.cancelled(self._at)

    def check(self):
        """Raise Cancelled if nobody wants the attempt any more."""
        if self.cancelled:
            raise errors.Cancelled("CANCELLED", "cancelled")

    def progress(self, done, total, seconds=0.0):
        """done of total pieces are finished; raises Cancelled as check does."""
        self._lib.progress(self._at, done, total, seconds)
        self.check()

    def steps(self, of):
        """The sampler's steps: `for i, t in job.steps(timesteps)`. Each is a turn of the device, told
        when it is over; raises Cancelled between two."""
        of = list(of)
        for i, x in enumerate(of):
            self.check()
            with self.turn(step=True, number=i + 1, more=i + 1 < len(of)):
                t0 = self._lib.now_ns()
                yield i, x
                self._wait_for_device()
            self._lib.step(self._at, i, len(of), t0)

    @contextlib.contextmanager
    def turn(self, step=False, number=0, more=False):
        """A piece of work on a device that other stages compute on, too."""
        self._lib.turn(self._at, step, number)
        try:
            yield
            self._wait_for_device()
        finally:
            self._lib.turn_end(self._at, more)

    @contextlib.contextmanager
    def span(self, kind):
        """For the report: "load", "wait" or "spool". Computing needs no word."""
        t0 = self._lib.now_ns()
        yield
        self._lib.span(self._at, kind.encode(), t0)

    # ---- inside ----

    def _filter(self, on, work):
        if on == "frames":
            self._filter_chunks(work)
            return
        handed = {name: self[name] for name in self.inputs}
        given = work(self, handed.get(on, handed))
        if given is None and not any(_is_torch(x) for x in handed.values()):
            getattr(self._lib, "pass")(self._at)
            return
        if not isinstance(given, dict):
            given = {} if given is None else {on: given}
        self.give(**{**handed, **given})

    def _filter_chunks(self, work):
        index, chunks, t = c_int(), c_int(), Tensor()
        self.first = 0
        for _ in range(self.chunks):
            getattr(self._lib, "await")(self._at, byref(index), byref(chunks), byref(t))
            frames = array_over(t, self._lib.dtypes, False)
            self.index = index.value
            given = work(self, frames)
            if given is None:
                getattr(self._lib, "pass")(self._at)
            else:
                self.send(given)
            self.first += frames.shape[0]
            self._lib.drop(self._at)
            self.check()

    def _finish(self, bytes=0):
        self._wait_for_device()
        self._lib.done(self._at, bytes)

    def _close(self):
        self._stage = self._closed = None

    def _stream(self):
        return self._stage._stream.cuda_stream if self._stage._stream else None

    def _wait_for_device(self):
        if self._stage._stream:
            self._stage._stream.synchronize()

    def _fill_device_slot(self, name, tensors):
        """Tensors of a GPU go into a slot on that GPU, where the receiver has some."""
        if not self._stage._stream or not all(_is_torch(x) and x.is_cuda for x in tensors):
            return
        slot, on_device = (Tensor * 4)(), c_bool()
        try:
            self._lib.slot(self._at, name.encode(), slot, byref(on_device))
        except errors.Gone:
            return
        if not on_device.value:
            return  # give copies, and says what becomes of the slot
        for i, x in enumerate(tensors):
            _on_device(slot[i], self._lib.dtypes, self._stage.device).copy_(x)
        self._lib.seal(self._at, self._stream())


def _is_torch(x):
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _to_host(x):
    return x.detach().float().cpu().numpy() if _is_torch(x) else numpy.asarray(x)


class _Memory:
    """Device memory as torch.as_tensor takes it, without a copy."""

    def __init__(self, t, code):
        self.__cuda_array_interface__ = {"shape": shape_of(t), "typestr": code, "data": (t.data, False), "version": 3, "strides": None}


def _on_device(t, dtypes, device):
    """A torch tensor over memory that the device can reach: its own, or another's that is mapped."""
    import torch
    codes = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "|u1", "I64": "<i8", "I32": "<i4"}
    name = dtypes[t.dtype]
    x = torch.as_tensor(_Memory(t, codes[name]), device=device)
    return x.view(torch.bfloat16) if name == "BF16" else x
