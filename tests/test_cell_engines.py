"""Where cells run: this machine's processes and Ray's tasks give the same numbers, also when a worker is lost."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trained import trained_folder
from whet import compare as comparing
from whet.arms import parse_arms
from whet.cells import Bench
from whet.engines import Engine, Local, OnRay, get_engine
from whet.errors import WhetError
from whet.terminal.board import board

SMALL: dict[str, Any] = {
    "recipes": ["sft:batch=4", "sft:batch=2,schedule=linear"], "task": "chain-sum:level=1", "budget": "steps:16", "seeds": 2,
    "save_every": 2, "test_n": 4, "k": 2, "validation_n": 6, "others": [], "threads": 1, "evaluations": 2, "keep": "last",
}  # fmt: skip


def numbers(found: Any) -> Any:
    """Results without what a clock measured."""
    if isinstance(found, dict):
        return {k: numbers(v) for k, v in found.items() if k not in ("minutes", "seconds")}
    return [numbers(v) for v in found] if isinstance(found, list) else found


def results(out: Path, **changes: Any) -> Any:
    comparing.compare(**{**SMALL, "model": trained_folder(), **changes}, out=out)
    return numbers(json.loads((out / "results.json").read_text()))


def half(job: int) -> float:
    if job == 3:
        raise WhetError("three cannot be halved")
    return job / 2


# -- names and arguments -------------------------------------------------------------------------------------------------
def test_engines_by_name() -> None:
    assert isinstance(get_engine(jobs=2), Local)
    made = get_engine("ray", jobs=3, address="auto", cpus=0.5)
    assert isinstance(made, OnRay)
    assert (made.address, made.cpus, made.gpus, made.jobs, made.threads) == ("auto", 0.5, 0.0, 3, 1)
    assert get_engine("ray", cpus=4).threads == 4
    for arguments, says in (
        ({"name": "slurm"}, "engine 'slurm' is not known: use local or ray"),
        ({"address": "auto"}, "--address is of --engine ray"),
        ({"gpus": 0.0}, "--gpus is of --engine ray"),
        ({"name": "ray", "cpus": 0.0}, "a cell takes 0 processors"),
    ):
        with pytest.raises(WhetError, match=says):
            get_engine(**arguments)  # type: ignore[arg-type]


def test_cores_are_divided_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert (Local().threads, Local(2).threads, Local(9).threads) == (0, 3, 1)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WhetError, match=r"needs Ray: pip install 'whet\[scale\]'"):
        list(OnRay().run(half, [1]))


def test_jobs_in_this_process_end_with_the_first_error() -> None:
    found: list[tuple[int, float]] = []
    with pytest.raises(WhetError, match="three cannot be halved"):
        for pair in Local().run(half, [4, 3, 2]):
            found.append(pair)
    assert found == [(0, 2.0)]


def test_what_is_there_needs_no_engine(tmp_path: Path) -> None:
    class Refuses:
        threads = 1

        def run(self, work: Any, jobs: Any) -> Iterator[Any]:
            pytest.fail(f"{len(jobs)} jobs were run")

    one = {"recipes": ["sft:batch=4"], "seeds": 1, "budget": "steps:2"}
    first = results(tmp_path, **one)
    assert results(tmp_path, **one, engine=Refuses()) == first


# -- the table -----------------------------------------------------------------------------------------------------------
def test_the_table_is_read_from_the_folders_of_the_runs(tmp_path: Path) -> None:
    bench = Bench(
        parse_arms({"a[b]": "sft", "c": "sft"}), task="parity", out=tmp_path, shared={"model": trained_folder()}
    )
    jobs = [bench.job(arm, seed=7) for arm in parse_arms({"a[b]": "sft:lr=0.1", "c": "sft", "d": "sft:lr=0.2"})]
    for job, done in zip(jobs[:2], (False, True), strict=True):
        job.folder.mkdir(parents=True)
        (job.folder / "run.yaml").touch()
        rows = [{"step": 4, "share": 0.25, "validation/accuracy": 0.5}, {"step": 5, "share": 0.3125}]
        (job.folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"step": 6, "sh')
        if done:
            (job.folder / "summary.json").touch()
    screen = Console(record=True, width=100, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    screen.print(board(jobs))
    rows = [line.split() for line in screen.export_text().splitlines() if " 7 " in line]
    assert rows == [["a[b]", "7", "runs", "5", "31", "%", "50", "%"], ["c", "7", "finished", "5", "31", "%", "50", "%"],
                    ["d", "7", "waits"]]  # fmt: skip


# -- Ray -----------------------------------------------------------------------------------------------------------------
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray: pip install 'whet[scale]'")


@pytest.fixture
def cluster() -> Iterator[Engine]:
    """Two slots of a cluster on this machine, which ends with the test."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see the tests
    ray.init("local", num_cpus=1, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False,
             logging_level="ERROR")  # fmt: skip
    try:
        yield OnRay(cpus=0.5)
    finally:
        ray.shutdown()
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def workers(folder: Path) -> list[int]:
    """Ray's workers that are at work in a folder, by process id."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cmdline").read_text().startswith("ray::_there") and (process / "cwd").readlink() == folder:
                found.append(int(process.name))
    return found


@needs_ray
@pytest.mark.slow
def test_ray_gives_the_numbers_of_the_local_engine(
    tmp_path: Path, cluster: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two arms and two seeds, also when a worker is killed after its first checkpoint: another goes on with its run."""
    local = results(tmp_path / "local")
    told: list[str] = []
    assert results(tmp_path / "ray", engine=cluster, watch=told.append) == local
    assert len(told) == 4
    monkeypatch.chdir(tmp_path)  # a relative folder is the same folder on a worker
    killed: list[int] = []

    def kill() -> None:
        while not list((tmp_path / "killed").glob("runs/*/checkpoints/step-*")):
            time.sleep(0.02)
        for pid in workers(tmp_path):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    again = results(Path("killed"), engine=cluster)
    thread.join()
    assert killed and again == local


@needs_ray
@pytest.mark.slow
def test_what_ray_cannot_do_is_said_in_one_line(cluster: Engine) -> None:
    assert sorted(cluster.run(half, [1, 2, 4])) == [(0, 0.5), (1, 1.0), (2, 2.0)]
    with pytest.raises(WhetError, match=r"^three cannot be halved$"):
        list(cluster.run(half, [3]))
    with pytest.raises(WhetError, match="a cell takes 1 processors and 8 GPUs, which no node of the cluster has"):
        list(OnRay(gpus=8).run(half, [1]))
    import ray

    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    with pytest.raises(
        WhetError, match=r"^1: a worker cannot read its task \(.*No module named 'test_cell_engines'\): install whet"
    ):
        list(cluster.run(half, [1]))
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.raises(WhetError, match=r"^7: its worker was lost 2 times"):
        list(OnRay(cpus=0.5, retries=1).run(die, [7]))


def die(job: int) -> None:
    os._exit(1)


@needs_ray
@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_said() -> None:
    with pytest.raises(WhetError, match=r"the cluster at '127\.0\.0\.1:9' cannot be joined"):
        list(OnRay("127.0.0.1:9").run(half, [1]))
