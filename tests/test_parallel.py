"""Jobs on processes, threads and real local clusters: the same results in the same order."""

from __future__ import annotations

import os
import time

import pytest

from evenflow.errors import EvenflowError
from evenflow.parallel import BACKENDS, Workers

PACKAGES = {"loky": "joblib", "threading": "joblib", "dask": "distributed", "ray": "ray"}


def square_and_process(x: int) -> tuple[int, int]:
    time.sleep(0.02)
    return x * x, os.getpid()


def fail(x: int) -> int:
    raise ValueError(f"cannot do {x}")


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=[pytest.mark.slow] if name == "ray" else []) for name in BACKENDS]
)
# Clusters are other people's code: dask warns of the port of its dashboard, ray of its own future.
@pytest.mark.filterwarnings("default")
def test_results_come_in_order_from_other_processes(backend: str) -> None:
    pytest.importorskip("joblib", reason="the package joblib is not installed")
    pytest.importorskip(PACKAGES[backend], reason=f"the package {PACKAGES[backend]} is not installed")
    found = list(Workers(2, backend).map(square_and_process, range(8)))
    assert [square for square, _ in found] == [x * x for x in range(8)]
    here = {process for _, process in found} == {os.getpid()}
    assert here == (backend == "threading")


def test_one_worker_is_this_process() -> None:
    assert list(Workers().map(square_and_process, [3])) == [(9, os.getpid())]


def test_an_error_of_a_job_arrives() -> None:
    pytest.importorskip("joblib", reason="the package joblib is not installed")
    with pytest.raises(ValueError, match="cannot do 1"):
        list(Workers(2, "threading").map(fail, [1]))


@pytest.mark.parametrize(
    ("jobs", "backend", "address", "message"),
    [
        (1, "slurm", None, "There is no backend 'slurm'. There are: loky, threading, dask, ray."),
        (0, "loky", None, "jobs is a number of workers, or -1 for one per core; got 0."),
        (2, "loky", "tcp://here", "An address is for the backends dask and ray, got 'loky'."),
    ],
)
def test_mistakes_are_named(jobs: int, backend: str, address: str | None, message: str) -> None:
    with pytest.raises(EvenflowError) as error:
        Workers(jobs, backend, address)
    assert str(error.value) == message
