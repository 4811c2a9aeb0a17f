"""Errors with a code of the protocol, and the code of any other exception."""
import os
import sys
import traceback


class Error(Exception):
    """An error of the protocol: `code` is its name ("SHAPE"); the user gets the message."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Cancelled(Error):
    """Nobody wants the attempt any more. Let it pass."""


class Gone(Error):
    """A neighbour is not there, or the stage is drained. Let it pass: the job is given again."""


def error(code, message):
    """The exception for a code that the library has answered."""
    kind = {"CANCELLED": Cancelled, "GONE": Gone, "BUSY": Gone}.get(code, Error)
    return kind(code, message)


def code_of(e):
    """Name of the code by which an exception ends a job."""
    name, text = type(e).__name__, str(e)
    if isinstance(e, Error):
        return e.code
    if isinstance(e, MemoryError) or name == "OutOfMemoryError":
        return "NOMEM"
    if name in ("AcceleratorError", "CudaError") or "CUDA error" in text:
        return "CUDA"  # the device's context is of no use any more
    return "INTERNAL"


def message_of(e):
    """One line: the exception, and where in the stage's own file."""
    if isinstance(e, Error):
        return str(e)
    own = getattr(sys.modules.get("__main__"), "__file__", "")
    lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == own]
    at = f" ({os.path.basename(own)}:{lines[-1]})" if lines else ""
    said = " ".join(str(e).split())
    return f"{type(e).__name__}{': ' if said else ''}{said[:400]}{at}"
