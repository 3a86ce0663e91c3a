"""A run that was written is the run that is read."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from time import thread_time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from evenflow.flow import Flow, Role, Row, Run, Site, Stats
from evenflow.flow.arrow import SCHEMA
from evenflow.flow.run import StepError
from evenflow.store import RunWriter, StoreError, StoreWarning, open_run
from evenflow.store.parts import Part, covering, gaps, seal, unseal
from evenflow.store.reader import StoredTables
from tests.store.runs import fill, flow, loss_of, scalars, write


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def check(run: Run, flushes: int) -> None:
    steps = np.arange(10 * flushes)
    assert (run.scalars["loss"].steps == steps).all()
    assert (run.scalars["loss"].values == 1 / (steps + 1)).all()
    assert run.steps == tuple(range(0, 10 * flushes, 10))
    for step, at in run.flows():
        assert at.rms(Role.UPDATE) == pytest.approx({f"{i}.weight": loss_of(step) for i in range(3)})
        assert at.metadata["loss"] == loss_of(step)
        assert at.metadata["step"] == step
    assert [one.text for one in run.events] == [f"flush {i}" for i in range(flushes)]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "run")
    run = open_run(tmp_path / "run")
    check(run, 6)
    assert run.metadata["model"] == "Net"
    assert run.metadata["state"] == "finished"
    assert run.update_to_weight_ratio(20) == {f"{i}.weight": 1.0 for i in range(3)}
    assert len(files(tmp_path / "run")) == 4, "joined at the end: one part a table, and run.json"


def test_a_run_is_read_while_it_is_written(tmp_path: Path) -> None:
    writer = write(tmp_path, 3, close=False)
    check(open_run(tmp_path), 3)
    assert open_run(tmp_path).metadata["state"] == "running"
    fill(writer, range(3, 4))
    writer.close("failed")
    check(open_run(tmp_path), 4)
    assert open_run(tmp_path).metadata["state"] == "failed"


def test_rows_are_written_by_themselves(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, flush_seconds=0.02)
    writer.add("scalars", scalars(range(4)))
    for _ in range(500):
        if open_run(tmp_path).scalars:
            break
        writer._thread.join(0.01)
    assert len(open_run(tmp_path).scalars["loss"]) == 4
    writer.close()


def test_the_thread_tells_what_writing_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    writer = RunWriter(tmp_path, flush_seconds=1e6, spent=told.append)
    write_it = writer.storage.write

    def slow(name: str, content: bytes) -> None:
        began = thread_time()
        while thread_time() - began < 0.02:
            pass
        write_it(name, content)

    monkeypatch.setattr(writer.storage, "write", slow)
    writer.add("scalars", scalars(range(4)))
    writer.flush()
    assert not told, "who asks for a flush waits for it"
    writer.add("scalars", scalars(range(4, 8)))
    writer.hurry()
    for _ in range(500):
        if told:
            break
        writer._thread.join(0.01)
    writer.close()
    assert len(told) == 1
    assert told[0] >= 0.02


def test_an_open_reader_survives_joining(tmp_path: Path) -> None:
    writer = write(tmp_path, 7, close=False)
    run = open_run(tmp_path)
    assert len(run.steps) == 7
    writer.add("flow", flow(70))
    writer.flush()  # the eighth: the parts are joined, and their files are gone
    assert run.flow(30).metadata["step"] == 30
    writer.close()
    assert run.flow(60).metadata["loss"] == loss_of(60)


def test_a_part_that_vanishes_after_listing_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = write(tmp_path, 7, close=False)
    run = open_run(tmp_path)
    listed = StoredTables._names

    def names_then_join(tables: StoredTables) -> list[str]:
        names = listed(tables)
        monkeypatch.undo()
        writer.close()
        return names

    monkeypatch.setattr(StoredTables, "_names", names_then_join)
    check(run, 7)


def test_the_number_of_files_and_of_waiting_rows_stays_small(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, flush_seconds=1e6)
    for flush in range(200):
        writer.add("scalars", scalars(range(flush, flush + 1)))
        writer.flush()
    assert writer._waiting_rows == 0
    assert len(files(tmp_path)) <= 1 + 7 * 3, "at most seven of each size: log8(200) = 2.5 sizes"
    assert (open_run(tmp_path).scalars["loss"].steps == np.arange(200)).all()
    writer.close()
    assert len(files(tmp_path)) == 2


def test_full_parts_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evenflow.store.writer._FULL_ROWS", 50)
    write(tmp_path, 20)
    sizes = [pq.read_table(path).num_rows for path in tmp_path.glob("scalars-*")]
    assert sum(sizes) == 400
    assert max(sizes) <= 50
    assert len(sizes) == 10
    check(open_run(tmp_path), 20)


def test_any_parquet_reader_reads_a_part(tmp_path: Path) -> None:
    write(tmp_path)
    (path,) = tmp_path.glob("scalars-*.parquet")
    assert pq.read_table(path).to_pydict()["value"][:2] == [1.0, 0.1]


def test_memory(tmp_path: Path) -> None:
    writer = write(None)
    check(Run(StoredTables(writer.storage)), 6)


def test_a_filesystem_of_fsspec() -> None:
    pytest.importorskip("fsspec")
    url = "memory://evenflow-tests/run"
    write(url)
    check(open_run(url), 6)
    assert len(StoredTables(RunWriter(url, overwrite=True).storage)._names()) == 1


def test_a_run_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    write(tmp_path, 2)
    with pytest.raises(StoreError) as caught:
        RunWriter(tmp_path)
    assert str(caught.value) == (
        f"There is a run at {tmp_path} already. Give another path, or overwrite=True to replace it."
    )
    (tmp_path / "mine.txt").write_text("not evenflow's")
    RunWriter(tmp_path, overwrite=True).close()
    assert files(tmp_path) == ["mine.txt", "run.json"]
    assert open_run(tmp_path).scalars == {}


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        open_run(tmp_path / "nowhere")
    assert str(caught.value) == (
        f"There is no folder {tmp_path}/nowhere. Give the folder of a run: the one that holds run.json."
    )
    with pytest.raises(StoreError) as caught:
        open_run(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds no run: it has no run.json. Give the folder that was the path of evenflow.watch."
    )
    (tmp_path / "run.json").write_text('{"name": "some other tool"}')
    with pytest.raises(StoreError, match=r"run\.json cannot be used: it is no run of evenflow\.$"):
        open_run(tmp_path)
    with pytest.raises(StoreError, match=r"^fsspec cannot open nosuch://x: Protocol not known"):
        open_run("nosuch://x")


def test_a_newer_form_asks_for_an_upgrade(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    object.__setattr__(writer._manifest, "schema", 2)
    writer.close()
    with pytest.raises(StoreError, match="it has the stored form 2, and this evenflow reads form 1; upgrade"):
        open_run(tmp_path)


def test_a_place_that_cannot_be_written_to_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"A run cannot be written to .*file/run: "):
        RunWriter(tmp_path / "file" / "run")


def test_a_step_without_a_flow_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(StepError) as caught:
        open_run(tmp_path).flow(25)
    assert str(caught.value) == (
        f"The run at {tmp_path} has no Flow of step 25. The nearest are 20 and 30; run.steps lists all 6."
    )


def test_a_flow_is_a_run_of_length_one() -> None:
    row = Row(Site("0.weight", "parameter", Role.PARAMETER), 0, stats=Stats(2, 0.0, 4.0))
    one = Flow([row], "predicted", {"model": "Net"})
    run = Run.of(one)
    assert run.steps == (0,)
    assert run.flow() is one
    assert run.flow(0).source == "predicted"
    assert run.scalars == {}
    assert run.events == ()
    assert run.parameter("second_moment_mean") == {}
    with pytest.raises(StepError, match="no Flow of step 1"):
        run.flow(1)


def test_covering_takes_each_flush_once() -> None:
    parts = [Part("flow", a, b, "0" * 32) for a, b in [(0, 0), (1, 1), (0, 7), (7, 7), (8, 8), (10, 11)]]
    chosen = covering(parts)
    assert [(p.first, p.last) for p in chosen] == [(0, 7), (8, 8), (10, 11)]
    assert gaps(chosen) == [9]
    assert gaps(chosen, 14) == [9, 12, 13]


def test_a_pickle_in_the_folder_is_not_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[type, tuple[str]]:
            return RuntimeError, ("unpickled",)

    write(tmp_path, 2)
    content = pickle.dumps(Bomb())
    (part,) = tmp_path.glob("scalars-*")
    part.write_bytes(content)
    (tmp_path / "extra.pkl").write_bytes(content)
    run = open_run(tmp_path)
    with pytest.warns(StoreWarning, match="its bytes do not match the checksum"):
        assert run.scalars == {}
    assert len(run.steps) == 2


def test_a_part_of_another_run_is_foreign(tmp_path: Path) -> None:
    write(tmp_path / "a", 2)
    write(tmp_path / "b", 3)
    (mine,) = (tmp_path / "a").glob("flow-*")
    (other,) = (tmp_path / "b").glob("flow-*")
    mine.unlink()
    (tmp_path / "a" / other.name).write_bytes(other.read_bytes())
    with pytest.warns(StoreWarning, match="it says '.* flow 0 2 schema 1' of itself where"):
        assert open_run(tmp_path / "a").steps == ()


def test_a_part_renamed_to_hide_others_is_foreign(tmp_path: Path) -> None:
    write(tmp_path, 4, close=False)
    first = sorted(tmp_path.glob("flow-*"))[0]
    first.rename(tmp_path / first.name.replace("00000000-00000000", "00000000-00000003"))
    with pytest.warns(StoreWarning, match=r"1 of the flushes of 'flow' are missing"):
        assert open_run(tmp_path).steps == (10, 20, 30)


def test_a_lost_last_part_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evenflow.store.writer._FULL_ROWS", 10)
    write(tmp_path, 3)
    sorted(tmp_path.glob("flow-*"))[-1].unlink()
    with pytest.warns(StoreWarning, match=r"1 of the flushes of 'flow' are missing"):
        assert open_run(tmp_path).steps == (0, 10)


def test_a_damaged_joined_part_gives_way_to_the_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evenflow.store.storage.Folder.delete", lambda self, name: None)
    write(tmp_path)
    (joined,) = tmp_path.glob("flow-00000000-00000005-*")
    joined.write_bytes(b"PAR1")
    with pytest.warns(StoreWarning, match="No rows are missing"):
        check(open_run(tmp_path), 6)


def test_a_damaged_manifest_does_not_cost_the_run(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "run.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields), encoding="utf-8")
    check(open_run(tmp_path), 6)  # another layout of the same facts is fine
    path.write_text(json.dumps({**fields, "state": "failed"}))
    with pytest.warns(StoreWarning, match="it was altered"):
        run = open_run(tmp_path)
    check(run, 6)
    assert run.metadata == {"state": "unknown"}


class Failing:
    """Writes that fail while ``broken``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from evenflow.store.storage import Folder

        write, self.broken = Folder.write, False

        def failing(folder: Folder, name: str, content: bytes) -> None:
            if self.broken:
                raise OSError(28, "No space left on device")
            write(folder, name, content)

        monkeypatch.setattr(Folder, "write", failing)


def test_a_full_disk_costs_nothing_once_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Failing(monkeypatch)
    writer = write(tmp_path, 2, close=False)
    disk.broken = True
    with pytest.warns(StoreWarning, match="No space left on device") as told:
        fill(writer, range(2, 4))
    assert len(told) == 1
    check(open_run(tmp_path), 2)
    disk.broken = False
    writer.close()
    check(open_run(tmp_path), 4)


def test_a_disk_that_stays_full_keeps_memory_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evenflow.store.writer._MOST_WAITING", 100)
    disk = Failing(monkeypatch)
    writer = write(tmp_path, 2, close=False)
    disk.broken = True
    with pytest.warns(StoreWarning, match="Training goes on") as told:
        fill(writer, range(2, 20))
    assert len(told) == 1
    assert writer._waiting_rows <= 100
    assert writer.lost_rows == 18 * (20 + 9 + 1) - writer._waiting_rows
    writer.close()
    check(open_run(tmp_path), 2)


def test_a_vanished_folder_stops_neither_writer_nor_reader(tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "run"
    writer = write(folder, 2, close=False)
    run = open_run(folder)
    shutil.rmtree(folder)
    writer.add("scalars", scalars(range(20, 21)))
    with pytest.warns(StoreWarning, match="cannot be written at the moment"):
        writer.close()
    with pytest.raises(StoreError, match="can no longer be read"):
        run.scalars  # noqa: B018


def test_a_warning_is_never_raised_into_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = Failing(monkeypatch)
    writer = write(tmp_path, 1, close=False)
    disk.broken = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.add("scalars", scalars(range(10, 11)))
        writer.close()
    assert capsys.readouterr().err.startswith("StoreWarning: The run at ")


def test_rows_of_a_wrong_form_are_not_taken(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, flush_seconds=1e6)
    with pytest.raises(ValueError, match="field names"):
        writer.add("scalars", pa.table({"step": ["x"]}))
    writer.add("flow", flow(0))
    writer.close()
    assert open_run(tmp_path).steps == (0,)


def test_of_a_part_with_many_steps_only_those_near_one_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evenflow.store.parts._GROUP_ROWS", 20)
    whole = pa.concat_tables([flow(step) for step in range(50)])  # 9 rows each: groups cut through steps
    part, content = seal("run", "flow", 0, 0, whole)
    sealed = unseal("run", part, content)
    assert sealed.rows().to_pylist() == whole.to_pylist()
    assert list(sealed.span) == [0, 49]
    for step in (0, 2, 3, 49):
        near = sealed.rows_near(step)
        assert near.num_rows <= 40
        assert near.filter(pc.equal(near["step"], step)).to_pylist() == flow(step).to_pylist()
    assert sealed.rows_near(50).num_rows == 0
    assert pickle.loads(pickle.dumps(sealed)).rows().equals(sealed.rows())


def test_parts_of_plain_strings_and_one_group_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form of runs that were stored before words became dictionaries."""
    table = flow(3).cast(pa.schema([pa.field("step", pa.int64(), nullable=False), *SCHEMA]))
    part, content = seal("run", "flow", 0, 0, table)
    assert unseal("run", part, content).rows().to_pylist() == flow(3).to_pylist()
