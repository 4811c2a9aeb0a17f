"""libsluice-stage.so through ctypes: its functions, as stages/own/stage.h declares them.

The dispatcher names the library that belongs to it (SLUICE_STAGE_LIB); without one it is looked
for as any other. What numbers mean comes from the library too (protocol())."""
import ctypes
import json
import os
from ctypes import (POINTER, Structure, byref, c_bool, c_char, c_char_p, c_double, c_int, c_int64, c_size_t, c_uint32,
                    c_uint64, c_void_p)

import numpy

from . import errors

ABI = 1
RANK = 6


class Err(Structure):
    _fields_ = [("code", c_int), ("msg", c_char * 512)]


class Tensor(Structure):
    _fields_ = [("data", c_void_p), ("dtype", c_int), ("rank", c_int), ("shape", c_int64 * RANK), ("pitch", c_int64)]


class Spec(Structure):
    _fields_ = [("handover", c_char_p), ("name", c_char_p), ("dtype", c_int), ("rank", c_int), ("shape", c_int64 * RANK)]


SPECS = Spec * 8
_S, _E, _T = c_void_p, POINTER(Err), POINTER(Tensor)
# name: result, arguments. A result Code is looked at: an error is raised.
Code = c_int
_FUNCTIONS = {
    "abi": (c_int, []),
    "open": (Code, [POINTER(_S), c_char_p, c_int, POINTER(c_char_p), _E]),
    "close": (c_int, [POINTER(_S), _E]),
    "model": (c_char_p, [_S]),
    "device": (c_char_p, [_S]),
    "instance": (c_int, [_S]),
    "args": (POINTER(c_char_p), [_S, POINTER(c_int)]),
    "ready": (Code, [_S, c_bool, c_size_t, _E]),
    "next": (Code, [_S, _E]),
    "filters": (c_char_p, [_S]),
    "pass": (Code, [_S, _E]),
    "dir": (c_char_p, [_S]),
    "job": (c_uint64, [_S, POINTER(c_uint32)]),
    "cancelled": (c_bool, [_S]),
    "specs": (c_int, [_S, c_bool, SPECS]),
    "chunks": (c_int, [_S]),
    "noise": (Code, [_S, _T, _E]),
    "input": (Code, [_S, c_char_p, c_void_p, _T, _E]),
    "lies_on_device": (c_bool, [_S, c_char_p]),
    "taken": (None, [_S, c_void_p]),
    "await": (Code, [_S, POINTER(c_int), POINTER(c_int), _T, _E]),
    "drop": (None, [_S]),
    "slot": (Code, [_S, c_char_p, _T, POINTER(c_bool), _E]),
    "seal": (Code, [_S, c_void_p, _E]),
    "give": (Code, [_S, c_char_p, _T, _E]),
    "chunk": (Code, [_S, c_int64, c_void_p, _T, _E]),
    "send": (Code, [_S, _E]),
    "progress": (None, [_S, c_int, c_int, c_double]),
    "step": (None, [_S, c_int, c_int, c_int64]),
    "span": (Code, [_S, c_char_p, c_int64, _E]),
    "now_ns": (c_int64, []),
    "turn": (Code, [_S, c_bool, c_int, _E]),
    "turn_end": (None, [_S, c_bool]),
    "log": (None, [c_char_p, c_char_p]),
    "done": (Code, [_S, c_uint64, _E]),
    "fail": (None, [_S, _E]),
}


def path():
    return os.environ.get("SLUICE_STAGE_LIB") or f"libsluice-stage.so.{ABI}"


class Library:
    """The functions without their prefix: lib.input(stage, name, ...). One that answers a code
    takes no error of the caller's: it raises. ctypes lets other threads run meanwhile."""

    def __init__(self, file=None):
        file = file or path()
        try:
            # global: the CUDA plug-in finds there what it is lent
            self.c = ctypes.CDLL(file, mode=ctypes.RTLD_GLOBAL)
        except OSError as e:
            raise errors.Error("ARG", f"{file}: {e} (SLUICE_STAGE_LIB names the library; the dispatcher sets it)") from None
        for name, (result, arguments) in _FUNCTIONS.items():
            f = getattr(self.c, "sl_stage_" + name)
            f.restype, f.argtypes = result, arguments
            takes_error = name not in ("close", "fail") and arguments and arguments[-1] is _E
            setattr(self, name, self._checked(f) if takes_error else f)
        if self.abi() != ABI:
            raise errors.Error("ARG", f"{file} has interface {self.abi()}, this package is for {ABI}: install both together")
        self.protocol = protocol(self.c)
        self.codes = [c["name"] for c in self.protocol["codes"]]
        self.dtypes = [d["name"] for d in self.protocol["dtypes"]]

    def _checked(self, f):
        def call(*arguments):
            err = Err()
            if f(*arguments, byref(err)):
                raise errors.error(self.codes[err.code], err.msg.decode(errors="replace"))
        return call

    def err(self, code, message):
        """An Err to hand to `fail` or `close`."""
        text = message.encode()[:511].decode(errors="ignore").encode()
        return Err(self.codes.index(code), text)


def protocol(c):
    """What `sluice protocol --json` prints, from the library itself."""
    c.sl_stage_protocol.restype = c_void_p
    libc = ctypes.CDLL(None)
    libc.free.argtypes = [c_void_p]
    at = c.sl_stage_protocol()
    try:
        return json.loads(ctypes.string_at(at))
    finally:
        libc.free(at)


# ---- arrays ----

NUMPY = {"F32": numpy.dtype("<f4"), "F16": numpy.dtype("<f2"), "BF16": numpy.dtype("<u2"), "U8": numpy.dtype("u1"),
         "I64": numpy.dtype("<i8"), "I32": numpy.dtype("<i4")}  # BF16: the bits, numpy has no such type


def shape_of(t):
    return tuple(t.shape[: t.rank])


def array_over(t, dtypes, writable):
    """A numpy array over a tensor's memory, which it does not own."""
    dtype, shape = NUMPY[dtypes[t.dtype]], shape_of(t)
    count = int(numpy.prod(shape, dtype=numpy.int64))
    memory = (c_char * (count * dtype.itemsize)).from_address(t.data or 0)
    a = numpy.frombuffer(memory, dtype, count).reshape(shape)
    a.flags.writeable = writable
    return a


def tensor_over(a, dtypes):
    """A Tensor over a numpy array that is dense; the caller keeps the array."""
    names = {v: k for k, v in NUMPY.items() if k != "BF16"}
    if a.dtype not in names:
        raise errors.Error("SHAPE", f"array of {a.dtype}, want one of {', '.join(str(d) for d in names)}")
    t = Tensor(data=a.ctypes.data, dtype=dtypes.index(names[a.dtype]), rank=a.ndim)
    if not 1 <= a.ndim <= RANK:
        raise errors.Error("SHAPE", f"array of {a.ndim} dimensions, want 1 to {RANK}")
    t.shape[: a.ndim] = a.shape
    t.pitch = a.size // a.shape[0] if a.shape[0] else 0
    return t
