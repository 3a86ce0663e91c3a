"""The flight recorder: the last steps in detail, and who broke first."""

from evenflow.watch.recorder.culprit import Culprit, Direction, Witness
from evenflow.watch.recorder.flight import Flight, Trouble, read_flights
from evenflow.watch.recorder.recorder import FlightRecorder

__all__ = ["Culprit", "Direction", "Flight", "FlightRecorder", "Trouble", "Witness", "read_flights"]
