"""Many independent jobs: on this machine's cores or, by naming the backend, on a cluster.

The work is joblib's. ``loky`` (processes here) is the default; ``dask`` and
``ray`` go to a cluster: one that runs, by its address, or one that is started
here. What is sent must be picklable, which functions of modules and frozen
dataclasses are.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from evenflow.errors import EvenflowError, MissingPackageError

A = TypeVar("A")
B = TypeVar("B")

BACKENDS = ("loky", "threading", "dask", "ray")
"""Where jobs may run."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Who does the work.

    Attributes:
        jobs: How many at a time; −1 for one per core. With 1 and no cluster the
            work is done in this very process.
        backend: One of :data:`BACKENDS`.
        address: Of a running cluster's scheduler (``dask``: ``tcp://host:8786``,
            ``ray``: ``host:6379``). Without one a cluster of ``jobs`` workers is
            started here and stopped at the end.
    """

    jobs: int = 1
    backend: str = "loky"
    address: str | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise EvenflowError(f"There is no backend {self.backend!r}. There are: {', '.join(BACKENDS)}.")
        if self.jobs == 0 or self.jobs < -1:
            raise EvenflowError(f"jobs is a number of workers, or -1 for one per core; got {self.jobs}.")
        if self.address is not None and self.backend not in ("dask", "ray"):
            raise EvenflowError(f"An address is for the backends dask and ray, got {self.backend!r}.")

    def map(self, function: Callable[[A], B], items: Sequence[A]) -> Iterator[B]:
        """Do the work; results come in the order of the items, each as soon as it and those before are done.

        Closing the iterator, as Ctrl-C does, gives up what has not begun.

        Raises:
            MissingPackageError: The backend needs a package that is not installed.
        """
        if self.jobs == 1 and self.backend in ("loky", "threading"):
            yield from map(function, items)
            return
        joblib = _joblib()
        with self._backend():
            parallel = joblib.Parallel(n_jobs=self.jobs)
            if parallel._backend.supports_return_generator:  # ray gives all at the end
                parallel = joblib.Parallel(n_jobs=self.jobs, return_as="generator")
            results = parallel(joblib.delayed(function)(item) for item in items)
            try:
                yield from results
            finally:
                if hasattr(results, "close"):
                    results.close()

    @contextlib.contextmanager
    def _backend(self) -> Iterator[None]:
        """Within the block joblib uses the backend."""
        with contextlib.ExitStack() as stack:
            if self.backend == "dask":
                stack.enter_context(self._dask())
            elif self.backend == "ray":
                stack.enter_context(self._ray())
            stack.enter_context(_joblib().parallel_config(backend=self.backend))
            yield

    @contextlib.contextmanager
    def _dask(self) -> Iterator[None]:
        try:
            from distributed import Client
        except ImportError as error:
            raise MissingPackageError("distributed", "The backend dask", "dask") from error
        cores = None if self.jobs == -1 else self.jobs
        local: dict[str, Any] = {"n_workers": cores, "threads_per_worker": 1, "dashboard_address": None}
        with Client(self.address) if self.address else Client(**local):
            yield

    @contextlib.contextmanager
    def _ray(self) -> Iterator[None]:
        try:
            import ray
            from ray.util.joblib import register_ray
        except ImportError as error:
            raise MissingPackageError("ray", "The backend ray", "ray") from error
        running = ray.is_initialized()
        if not running:
            cores = None if self.jobs == -1 else self.jobs
            local: dict[str, Any] = {"num_cpus": cores, "include_dashboard": False}
            ray.init(**({"address": self.address} if self.address else local), logging_level=logging.ERROR)
        register_ray()
        try:
            yield
        finally:
            if not running:
                ray.shutdown()


def _joblib() -> Any:
    try:
        import joblib
    except ImportError as error:
        raise MissingPackageError("joblib", "Working on several cores", "parallel") from error
    return joblib
