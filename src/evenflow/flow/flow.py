"""Flow: the table of one step, predicted or measured.

A Flow is what every part of evenflow speaks: :func:`evenflow.measure` and
:func:`evenflow.predict` produce one, rules and reports read it and need not know
which. One row is one site (:class:`~evenflow.flow.site.Site`) with the
statistics of its tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, final

from evenflow.errors import MissingPackageError
from evenflow.flow import chain as chains
from evenflow.flow.budget import Budget, Level, block_of, group, op_links
from evenflow.flow.site import LOSS_PATH, Role, Status
from evenflow.flow.stats import Stats
from evenflow.flow.table import Row

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

Source = Literal["measured", "predicted"]
_PARAMETER_ROLES = frozenset({Role.PARAMETER, Role.PARAMETER_GRADIENT, Role.UPDATE})


@final
class Flow:
    """A labelled table with one row per site.

    Args:
        rows: The rows; they are kept sorted by forward execution.
        source: Whether a batch was run or the model alone was read.
        metadata: Facts on the whole step that fit in JSON: loss, model name,
            loss scale, PyTorch version …
        notes: What the table does not cover, in plain words, one fact each.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        source: Source,
        metadata: Mapping[str, Any] | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        self.rows = tuple(sorted(rows, key=lambda row: row.order))
        self.source = source
        self.metadata = dict(metadata or {})
        self.notes = tuple(notes)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __repr__(self) -> str:
        sites = len({(row.site.path, row.order) for row in self.rows})
        return f"<Flow {self.source}: {len(self)} rows at {sites} sites>"

    def select(self, role: Role | str, *, time_steps: bool = False) -> tuple[Row, ...]:
        """Rows of one role, in forward order.

        Args:
            role: A :class:`Role` or its name.
            time_steps: Whether to give the rows of single time steps of
                recurrent layers instead of those of whole tensors.

        Raises:
            ValueError: There is no such role.
        """
        return self._selections.get((_role(role), time_steps), ())

    def stats(self, role: Role | str, level: Literal["op", "module"] = "module") -> dict[str, Stats]:
        """Statistics by place, in forward order; several calls of one module are merged.

        Args:
            role: A :class:`Role` or its name.
            level: ``"module"``: the outputs of innermost modules, and ops that
                a module runs between its children as ``path:op``;
                ``"op"``: every op by its label. Parameters go by name at both.

        Returns:
            Place → statistics. Places that nothing reached are left out.

        Raises:
            ValueError: There is no such role.
        """
        merged: dict[str, Stats] = {}
        for place, rows in self.by_place(role, level).items():
            known = [row.stats for row in rows if row.stats is not None]
            if known:
                merged[place] = Stats.merge_all(known)
        return merged

    def by_place(
        self, role: Role | str, level: Literal["op", "module"] = "module"
    ) -> dict[str, tuple[Row, ...]]:
        """The rows behind :meth:`stats`, those that nothing reached included; arguments as there."""
        found: dict[str, list[Row]] = {}
        for row in self.select(role):
            for place in self._places(row, level):
                found.setdefault(place, []).append(row)
        return {place: tuple(rows) for place, rows in found.items()}

    def rms(self, role: Role | str, level: Literal["op", "module"] = "module") -> dict[str, float]:
        """Root mean square by place, in forward order; arguments as in :meth:`stats`."""
        return {place: stats.rms for place, stats in self.stats(role, level).items()}

    def status(self) -> dict[str, Status]:
        """Parameter → whether a gradient reached it, and if not why."""
        return {row.site.path: row.status for row in self.select(Role.PARAMETER_GRADIENT)}

    def time_profile(self, role: Role | str = Role.ACTIVATION_GRADIENT) -> dict[str, dict[int, Stats]]:
        """For recurrent layers: state (label without time) → time step → statistics."""
        profile: dict[str, dict[int, Stats]] = {}
        for row in self.select(role, time_steps=True):
            if row.stats is not None and row.site.time is not None:
                label = row.site.label.rpartition("@t")[0]
                profile.setdefault(label, {})[row.site.time] = row.stats
        return profile

    def chain(self, role: Role | str = Role.ACTIVATION_GRADIENT) -> tuple[Row, ...]:
        """The tensors through which all of the gradient passes, in forward order.

        See :mod:`evenflow.flow.chain`.
        """
        role = _role(role)
        rows = {row.order: row for row in self.select(role)}
        return tuple(rows[order] for order in self._chain if order in rows)

    def budget(self, level: Level = "module", role: Role | str = Role.ACTIVATION_GRADIENT) -> Budget:
        """Where along the chain the gradient (or the activation) gains and loses.

        Args:
            level: One link per ``"op"``, per ``"module"`` or per ``"block"``.
            role: ``activation_gradient``, counted backwards, or ``activation``, forwards.

        Raises:
            ValueError: ``level`` or ``role`` is not one of these.
        """
        role = _role(role)
        if role not in (Role.ACTIVATION_GRADIENT, Role.ACTIVATION):
            raise ValueError(
                f"budget(role={str(role)!r}): gains are defined for 'activation_gradient' and 'activation'."
            )
        rows = self.chain(role)
        graph = {row.order: row for row in self.select(role)}
        links = op_links(rows, graph, backward=role is Role.ACTIVATION_GRADIENT)
        place_of: dict[str, Callable[[str], str] | None] = {"op": None, "module": str, "block": block_of}
        if level not in place_of:
            raise ValueError(f"budget(level={level!r}): expected 'op', 'module' or 'block'.")
        grouping = place_of[level]
        return Budget(
            role=str(role),
            level=level,
            start=rows[0].site.label if rows else "",
            end=rows[-1].site.label if rows else "",
            links=links if grouping is None else group(links, grouping),
        )

    def to_arrow(self) -> pa.Table:
        """The rows as an Arrow table with the columns of :data:`evenflow.flow.arrow.SCHEMA`."""
        from evenflow.flow.arrow import to_arrow

        return to_arrow(self.rows)

    @classmethod
    def from_arrow(
        cls,
        table: pa.Table,
        source: Source,
        metadata: Mapping[str, Any] | None = None,
        notes: Iterable[str] = (),
    ) -> Flow:
        """The Flow of an Arrow table; the inverse of :meth:`to_arrow`.

        Raises:
            ValueError: A column is missing.
        """
        from evenflow.flow.arrow import from_arrow

        return cls(from_arrow(table), source, metadata, notes)

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        try:
            import pandas  # noqa: F401
        except ImportError as error:
            raise MissingPackageError("pandas", "Flow.to_pandas", "frames") from error
        frame: pd.DataFrame = self.to_arrow().to_pandas()
        return frame

    def to_polars(self) -> pl.DataFrame:
        """The rows as a polars DataFrame.

        Raises:
            MissingPackageError: polars is not installed.
        """
        try:
            import polars
        except ImportError as error:
            raise MissingPackageError("polars", "Flow.to_polars", "frames") from error
        frame = polars.from_arrow(self.to_arrow())
        assert isinstance(frame, polars.DataFrame)
        return frame

    @cached_property
    def _selections(self) -> dict[tuple[Role, bool], tuple[Row, ...]]:
        """Role and whether of single time steps → rows."""
        found: dict[tuple[Role, bool], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row.site.role, row.site.time is not None), []).append(row)
        return {key: tuple(rows) for key, rows in found.items()}

    @cached_property
    def _chain(self) -> tuple[int, ...]:
        """Orders of the ops on the chain."""
        return chains.chain({row.order: row.inputs for row in self.select(Role.ACTIVATION_GRADIENT)})

    @cached_property
    def _containers(self) -> frozenset[str]:
        """Paths of modules that ran other modules."""
        paths = {row.site.path for row in self.rows if row.site.role not in _PARAMETER_ROLES}
        paths |= {module.path for row in self.rows for module in row.output_of}
        return frozenset(
            parent for path in paths if path not in ("", LOSS_PATH) for parent in _ancestors(path)
        )

    def _places(self, row: Row, level: Literal["op", "module"]) -> list[str]:
        """Under which keys a row stands in the mappings that users read."""
        if row.site.role in _PARAMETER_ROLES:
            return [row.site.path]
        if level == "op":
            return [row.site.label]
        if row.site.path == LOSS_PATH:
            return []
        leaves = [module.path for module in row.output_of if module.path not in self._containers]
        if leaves:
            return leaves
        return [f"{row.site.path}:{row.site.op}"] if row.site.path in self._containers else []


def _role(role: Role | str) -> Role:
    try:
        return Role(role)
    except ValueError:
        raise ValueError(f"There is no role {role!r}. Roles are: {', '.join(Role)}.") from None


def _ancestors(path: str) -> Iterator[str]:
    """``a.b.c`` → ``a.b``, ``a``, ````."""
    while path:
        path = path.rpartition(".")[0]
        yield path
