"""Engines: where the cells of a comparison run. An engine runs a function over jobs and gives what came of each as it is done.

| engine | cells are |
|---|---|
| `Local(jobs)` | processes of this machine; one job is this process itself |
| `OnRay(address)` | tasks of a Ray cluster, each with a share of a node's processors and GPUs |

A cell is a function of its job, so both give the same numbers (with the same threads and the same kind of processor). On a
cluster the results folder and the model must lie on a file system that all workers see at the same path: a worker writes the
run's folder there, and one that takes over from a lost worker goes on from the checkpoint that lies in it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from whet.errors import WhetError

J = TypeVar("J")
R = TypeVar("R")

PATIENCE = 60.0  # seconds without a finished cell after which the cluster is looked at again
RETRIES = 3  # lost workers of one cell before the comparison stops
STORE = 128 << 20  # bytes of a cluster that is started here for objects: cells are small, and go through the folder


class Engine(Protocol):
    """Runs jobs.

    Attributes:
        threads: of each job; 0 leaves it to the job.
    """

    threads: int

    def run(self, work: Callable[[J], R], jobs: Sequence[J]) -> Iterator[tuple[int, R]]:
        """(place, work(job)) of each job, as they are done. The first error ends all."""
        ...


class Local:
    """Processes of this machine; the cores are divided among them.

    Args:
        jobs: how many at a time. From a script, more than one needs `if __name__ == "__main__":`.
    """

    def __init__(self, jobs: int = 1) -> None:
        self.jobs, self.threads = max(1, jobs), 0
        if self.jobs > 1:
            allowed = os.environ.get("OMP_NUM_THREADS", "")
            self.threads = max(1, (int(allowed) if allowed.isdigit() else os.cpu_count() or 1) // self.jobs)

    def run(self, work: Callable[[J], R], jobs: Sequence[J]) -> Iterator[tuple[int, R]]:
        if self.jobs == 1 or len(jobs) < 2:
            yield from ((place, work(job)) for place, job in enumerate(jobs))
            return
        context = multiprocessing.get_context("spawn")
        workers = min(self.jobs, len(jobs))
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_follow, initargs=(os.getpid(),)) as pool:
            try:
                places = {pool.submit(work, job): place for place, job in enumerate(jobs)}
                yield from ((places[done], done.result()) for done in as_completed(places))
            except BrokenProcessPool:
                raise WhetError(
                    "a worker was killed (for memory?); what is done is kept, and the same command goes on with it"
                ) from None
            except BaseException as problem:
                pool.shutdown(wait=False, cancel_futures=True)
                if isinstance(problem, KeyboardInterrupt):  # each saves its run after its step
                    for worker in multiprocessing.active_children():
                        worker.terminate()
                raise


class OnRay:
    """Tasks of a Ray cluster. Ray's own processes listen on all addresses of their machine and trust whoever reaches them: use it
    on a network that you trust. Nothing else that Whet starts listens at all.

    Args:
        address: of a running cluster (`auto`, `HOST:6379`, `ray://HOST:10001`); None starts one on this machine, which ends
            with the comparison.
        cpus, gpus: processors and GPUs of one cell, parts of one allowed: with `gpus=0.25` four cells share a GPU.
        jobs: processors of a cluster that is started here, in cells; 0 takes those there are.
        retries: lost workers of one cell before the comparison stops.
    """

    def __init__(
        self, address: str | None = None, *, cpus: float = 1.0, gpus: float = 0.0, jobs: int = 0, retries: int = RETRIES
    ) -> None:
        if cpus <= 0 or gpus < 0:
            raise WhetError(f"a cell takes {cpus:g} processors and {gpus:g} GPUs: more than 0, and not less than 0")
        self.address, self.cpus, self.gpus, self.jobs, self.retries = address, cpus, gpus, jobs, retries
        self.threads = max(1, int(cpus))

    def run(self, work: Callable[[J], R], jobs: Sequence[J]) -> Iterator[tuple[int, R]]:
        ray = _ray()
        with self._cluster(ray):
            self._check(ray)
            task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=self.retries)(_there)
            here = str(Path.cwd())
            places = {task.remote(work, job, here): place for place, job in enumerate(jobs)}
            left = list(places)
            try:
                while left:
                    ready, left = ray.wait(left, timeout=PATIENCE)
                    if not ready:
                        self._check(ray)  # a node may have gone
                    yield from ((places[done], self._result(ray, done, jobs[places[done]])) for done in ready)
            finally:
                for task in left:
                    ray.cancel(task)

    def _result(self, ray: Any, done: Any, job: Any) -> Any:
        try:
            return ray.get(done)
        except ray.exceptions.RayTaskError as problem:
            if isinstance(problem.cause, WhetError):
                raise problem.cause from None
            if isinstance(problem.cause, ray.exceptions.RaySystemError):
                why = str(problem.cause).strip().splitlines()[-1]
                raise WhetError(f"{job}: a worker cannot read its task ({why}): install whet, and modules of your own that the task is "
                                "from, on all nodes") from None  # fmt: skip
            raise
        except ray.exceptions.RayError as problem:
            why = str(problem).strip().splitlines()[0]
            raise WhetError(f"{job}: its worker was lost {self.retries + 1} times ({why}); what is done is kept, and the same command "
                            "goes on with it") from None  # fmt: skip

    @contextmanager
    def _cluster(self, ray: Any) -> Iterator[None]:
        """Joined, or started, for as long as it is needed; one that the caller has joined already stays as it is."""
        if ray.is_initialized():
            yield
            return
        quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
        try:
            if self.address is None:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                cpus = max(1, round(self.jobs * self.cpus)) if self.jobs else None
                ray.init("local", num_cpus=cpus, include_dashboard=False, object_store_memory=STORE, **quiet)
            else:
                _knock(self.address)
                ray.init(self.address, **quiet)
        except (OSError, ValueError, RuntimeError) as problem:
            what = f"the cluster at '{self.address}' cannot be joined" if self.address else "Ray does not start here"
            raise WhetError(f"{what}: {str(problem).strip().splitlines()[0]}") from None
        try:
            yield
        finally:
            ray.shutdown()  # ends the tasks that still run

    def _check(self, ray: Any) -> None:
        """Refuse what no node can give: Ray would wait for such a node for ever."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= self.cpus and node.get("GPU", 0) >= self.gpus for node in nodes):
            most = ", ".join(f"{node.get('CPU', 0):g} processors and {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise WhetError(f"a cell takes {self.cpus:g} processors and {self.gpus:g} GPUs, which no node of the cluster has ({most}): "
                            "ask for less with --cpus and --gpus")  # fmt: skip


def get_engine(name: str = "local", *, jobs: int = 1, address: str | None = None, cpus: float | None = None,
               gpus: float | None = None) -> Engine:  # fmt: skip
    """An engine by name: `local` or `ray`.

    Args:
        jobs: cells at a time; on a cluster that is joined by its address, the cluster decides.
        address, cpus, gpus: of the ray engine.
    """
    given = {"address": address, "cpus": cpus, "gpus": gpus}
    if name == "ray":
        own = {k: v for k, v in given.items() if v is not None}
        return OnRay(jobs=jobs if jobs > 1 else 0, **own)  # type: ignore[arg-type]
    if name != "local":
        raise WhetError(f"engine '{name}' is not known: use local or ray")
    for what, value in given.items():
        if value is not None:
            raise WhetError(f"--{what} is of --engine ray; the local engine has --jobs")
    return Local(jobs)


def _ray() -> Any:
    try:
        importlib.import_module("ray.exceptions")
        return importlib.import_module("ray")
    except ImportError:
        raise WhetError("the ray engine needs Ray: pip install 'whet[scale]'") from None


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at `HOST:PORT`: Ray would try for minutes. Other addresses are Ray's to find."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _there(work: Callable[[J], R], job: J, folder: str) -> R:
    """On a worker: relative paths mean what they mean where the comparison was asked for."""
    if not Path(folder).is_dir():
        raise WhetError(f"'{folder}' is not there on {socket.gethostname()}: all workers must see the folder of the comparison, at the "
                        "same path")  # fmt: skip
    os.chdir(folder)
    return work(job)


def _follow(parent: int) -> None:
    """End this worker when its parent has been killed, so that nobody writes behind the back of the next one."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal's Ctrl-C comes to all; the parent passes it on, once, as SIGTERM
