"""A stage of Sluice's pipeline in Python. README.md beside this package tells it by example.

    import sluice
    stage = sluice.Stage("decode")     # says HELLO: what takes long to import or load comes behind
    def decode(job):                   # once a job
        x = job["latents"]             # what it is handed: an array over the slot
        ...
        job.send(frames)               # what it hands on
    stage.serve(decode)                # READY, then job after job; does not return
"""
from .errors import Cancelled, Error, Gone
from .job import Job
from .stage import Stage

__all__ = ["Cancelled", "Error", "Gone", "Job", "Stage"]
