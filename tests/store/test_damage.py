"""Damage of any kind to any file: never a crash, never a silently wrong value.

A run of 6 flushes is damaged at random: bytes flipped, cut off, appended or
exchanged, whole files exchanged, renamed, emptied or deleted. What is then read
must be a subset of what was written, and what is not read must have been told.
"""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from shutil import copytree

import pyarrow.compute as pc
import pytest

from evenflow.flow import Run
from evenflow.store import StoreError, StoreWarning, open_run
from evenflow.store.manifest import Manifest
from evenflow.store.parts import Part, seal, unseal
from tests.store.runs import write

FLUSHES = 6


def flip(path: Path, chance: random.Random, folder: Path) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 2, 20])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, chance: random.Random, folder: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])


def append(path: Path, chance: random.Random, folder: Path) -> None:
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.randrange(1, 50)))


def swap_bytes(path: Path, chance: random.Random, folder: Path) -> None:
    content = bytearray(path.read_bytes())
    a, b = sorted(chance.sample(range(len(content)), 2))
    content[a], content[b] = content[b], content[a]
    path.write_bytes(content)


def swap_files(path: Path, chance: random.Random, folder: Path) -> None:
    other = chance.choice(sorted(folder.iterdir()))
    a, b = path.read_bytes(), other.read_bytes()
    path.write_bytes(b)
    other.write_bytes(a)


def exchange_names(path: Path, chance: random.Random, folder: Path) -> None:
    """Numbers of another part, but the digest stays with its bytes."""
    number = chance.randrange(8)
    parts = path.name.split("-")
    if len(parts) == 4:
        path.rename(folder / "-".join([parts[0], parts[1], f"{max(number, int(parts[1])):08d}", parts[3]]))


def delete(path: Path, chance: random.Random, folder: Path) -> None:
    path.unlink()


DAMAGES = [flip, flip, truncate, truncate, append, swap_bytes, swap_files, exchange_names, delete]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One run that was killed with small parts and one that ended."""
    folder = tmp_path_factory.mktemp("originals")
    write(folder / "open", FLUSHES, close=False)
    write(folder / "closed", FLUSHES)
    return [folder / "open", folder / "closed"]


def content(run: Run) -> dict[str, set[tuple[object, ...]]]:
    """All that the run says, as sets of facts."""
    return {
        "scalars": {
            (name, int(step), float(value))
            for name, series in run.scalars.items()
            for step, value in zip(series.steps, series.values, strict=True)
        },
        "events": {(event.step, event.kind, event.text) for event in run.events},
        "flow": {
            (step, row.site.label, row.site.role, row.stats and row.stats.mean_square)
            for step, at in run.flows()
            for row in at
        },
    }


def damage(original: Path, folder: Path, chance: random.Random) -> None:
    copytree(original, folder)
    for _ in range(chance.choice([1, 1, 1, 3])):
        chance.choice(DAMAGES)(chance.choice(sorted(folder.iterdir())), chance, folder)


def survives(original: Path, folder: Path, seed: int) -> bool:
    """Damage a copy and read it; whether anything was missing."""
    damage(original, folder, random.Random(seed))
    return judge(original, folder, seed)


def judge(original: Path, folder: Path, seed: int) -> bool:
    """Read a damaged copy; whether anything was missing."""
    whole = content(open_run(original))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = content(open_run(folder))
        except StoreError:
            return True  # a clear error
    assert {type(one.message) for one in told} <= {StoreWarning}
    for table, facts in whole.items():
        assert found[table] <= facts, f"seed {seed}: {table} says what was never written"
    missing = found != whole
    if missing and not _only_last_parts_deleted(original, folder):
        assert told, f"seed {seed}: something is missing and nobody said so"
    return missing


def _only_last_parts_deleted(original: Path, folder: Path) -> bool:
    """A run that never ended does not know how many parts it had: losing the last looks like a kill."""
    before = {path.name: path.read_bytes() for path in original.iterdir()}
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    return original.name == "open" and all(before.get(name) == bytes_ for name, bytes_ in after.items())


@pytest.mark.parametrize("seed", range(50))
def test_damage_is_never_read_as_data(originals: list[Path], tmp_path: Path, seed: int) -> None:
    survives(originals[seed % 2], tmp_path / "damaged", seed)


@pytest.mark.slow
def test_damage_500_times(originals: list[Path], tmp_path: Path) -> None:
    missing = [survives(originals[seed % 2], tmp_path / f"{seed}", seed) for seed in range(1000, 1500)]
    assert 100 < sum(missing) < 500, "most damages cost something, some do not"


def test_the_check_can_fail(originals: list[Path], tmp_path: Path) -> None:
    """An altered part under a digest that fits: what no accident does, and what the check must see."""
    folder = tmp_path / "forged"
    copytree(originals[1], folder)
    (path,) = folder.glob("scalars-*")
    part = Part.parse(path.name)
    assert part is not None
    rows = unseal(None, part, path.read_bytes()).rows()
    values = pc.add(rows["value"], 1e-12)
    run = Manifest.from_json((folder / "run.json").read_bytes()).id
    forged, altered = seal(run, "scalars", part.first, part.last, rows.set_column(2, rows.schema[2], values))
    path.unlink()
    (folder / forged.name).write_bytes(altered)
    with pytest.raises(AssertionError, match="scalars says what was never written"):
        judge(originals[1], folder, seed=0)
