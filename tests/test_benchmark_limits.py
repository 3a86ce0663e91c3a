"""The limit of processor time that benchmarks have against programs that hang."""

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.limits import at_most


def _busy(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_block_is_ended_though_it_takes_the_first_error_for_a_ctrl_c() -> None:
    caught = []

    def goes_on() -> None:
        try:
            _busy(5.0)
        except KeyboardInterrupt:
            caught.append(1)
        _busy(5.0)
        caught.append(2)

    with pytest.raises(KeyboardInterrupt), at_most(0.1, KeyboardInterrupt):
        goes_on()
    assert caught == [1]


def test_what_ends_in_time_is_left_alone() -> None:
    with at_most(0.1, KeyboardInterrupt):
        _busy(0.01)
    _busy(0.2)
