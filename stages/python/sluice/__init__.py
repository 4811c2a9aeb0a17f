"""A stage of Sluice's pipeline in Python. README.md beside this package tells it by example.

    import sluice
    stage = sluice.Stage("decode")     # says HELLO: what takes long to import or load comes behind
    def decode(job):                   # once a job
        x = job["latents"]             # what it is handed: an array over the slot
        ...
        job.send(frames)               # what it hands on
    stage.serve(decode)                # READY, then job after job; does not return

A filter, which the configuration puts into a hand-over:

    def soften(job, latents):          # once a hand-over, or once a chunk of frames
        return 0.9 * latents           # None: it only looked
    sluice.Filter().serve(soften)
"""
from .errors import Cancelled, Error, Gone
from .job import Job
from .stage import Filter, Stage

__all__ = ["Cancelled", "Error", "Filter", "Gone", "Job", "Stage"]
