"""Causes by intervention: each suspect is removed in a copy, and the copy is measured again.

    diagnosis = confirm(diagnosis, OneBatch(model, inputs, loss, seed, flow))
    for cause in diagnosis.causes:
        print(cause.name, cause.trial.outcome)

Nothing of the user's is changed: neither the model nor its optimizer nor any random state.
"""

from evenflow.intervene.confirm import SECONDS, Track, confirm
from evenflow.intervene.subject import FirstBatch, OneBatch, Subject

__all__ = ["SECONDS", "FirstBatch", "OneBatch", "Subject", "Track", "confirm"]
