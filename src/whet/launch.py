"""`whet.run`: one call from a recipe's name to a trained model with its before and after."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch

from whet.config import RunConfig
from whet.errors import WhetError, mendable, unknown
from whet.evaluation import continual, metrics
from whet.evaluation.continual import Stream
from whet.evaluation.evaluate import Evaluator, Plan, sample_rows
from whet.evaluation.forgetting import suite_of, tasks_of
from whet.evaluation.probes import get_probes
from whet.models import base
from whet.models.policy import Policy
from whet.ranks import Ranks, together
from whet.recipes.recipe import Entry, get_recipe
from whet.runs import RunFolder, plain
from whet.sampling import check_sampler
from whet.sources import Collector, Scope
from whet.tasks import Task, get_task
from whet.track import tracked
from whet.training.budget import Budget
from whet.training.checkpoint import write_atomic
from whet.training.fit import Fit, Observer, Options, Progress
from whet.training.memory import check_bits, check_shards
from whet.training.stage import Stage
from whet.weights import get_weights

log = logging.getLogger("whet")

LOOKED = 64  # problems of which rows are looked at at once, before a run


class Watcher(Observer, Protocol):
    """An observer of the whole run, for the command's display."""

    def start(self, config: RunConfig, policy: Policy, task: Task, lines: Sequence[str]) -> None: ...
    def phase(self, text: str) -> None: ...


@dataclass
class Result:
    """What `run` returns.

    Attributes:
        policy: the trained policy.
        summary: the contract of `summary.json`.
        folder: the run folder, where one was asked for.
        progress: where the run ended; `finished` is False when it was stopped.
    """

    policy: Policy
    summary: dict[str, Any]
    folder: RunFolder | None = None
    progress: Progress = field(default_factory=Progress)

    def save(self, folder: str | Path) -> None:
        """Save the model as a plain Hugging Face (or PEFT) folder."""
        self.policy.save(folder)

    def push_to_hub(self, repository: str, **options: Any) -> None:
        """Push model and tokenizer to the Hub, as `transformers` does."""
        (self.policy.peft or self.policy.model).push_to_hub(repository, **options)
        self.policy.tokenizer.push_to_hub(repository, **options)


def run(
    recipe: str | Entry, *, out: str | Path | None = None, task: str | Task | None = None, watcher: Watcher | None = None,
    stop: Callable[[], bool] | None = None, **settings: Any,
) -> Result:  # fmt: skip
    """Train a model with a recipe.

    Args:
        recipe: a recipe's name.
        out: the run folder; None keeps nothing on disk.
        task: a task's name, a file, or a Task object; by default the recipe's.
        watcher: gets progress.
        stop: asked after each step; True saves and ends the run early.
        settings: `RunConfig`'s settings (model, verifier, weights, seed ...) and the recipe's own arguments.

    Raises:
        WhetError: for anything the user can mend, before anything is written.
    """
    config = configure(recipe, task=task, **settings)
    return Run(config, out=out, task=task if isinstance(task, Task) else None, watcher=watcher, stop=stop).go()


def configure(recipe: str | Entry, *, task: str | Task | None = None, **settings: Any) -> RunConfig:
    """The config of a run: each of `settings` is the recipe's own argument, or a setting of the run."""
    entry = get_recipe(recipe)
    task = entry.task if task is None else task
    if not isinstance(task, str | Task):
        raise WhetError(f"setting 'task': {task!r} is neither a task nor the name of one")
    known = RunConfig.model_fields
    for name in settings:
        if name not in known and name not in entry.arguments:
            raise unknown(f"argument of recipe '{entry.name}'", name, [*entry.arguments, *known])
    own = {k: v for k, v in settings.items() if k in known and k not in entry.arguments}
    arguments = {k: v for k, v in settings.items() if k not in own}
    both = {"recipe": entry.name, "arguments": {**arguments, **own.pop("arguments", {})}, **own}
    both["task"] = task if isinstance(task, str) else task.spec()
    return RunConfig.make(both)


def resume(
    out: str | Path, *, task: Task | None = None, watcher: Watcher | None = None, stop: Callable[[], bool] | None = None
) -> Result:
    """Go on with the run in a folder, from its newest checkpoint; the end is the same, bit for bit.

    Args:
        task: the Task object that the run was given, where its name alone does not make it.
    """
    return Run.reopen(out, task=task, watcher=watcher, stop=stop).go()


class Run:
    """One run: checks everything first, then writes."""

    @together()
    def __init__(
        self, config: RunConfig, *, out: str | Path | None = None, task: Task | None = None,
        watcher: Watcher | None = None, stop: Callable[[], bool] | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self.ranks = Ranks.here()
        self.tracked = tracked(watcher, config.track, config, out) if config.track and self.ranks.first else None
        self.watcher: Watcher | None = self.tracked or watcher
        self.resumed = record is not None
        record = record or {}
        if out is not None and not self.resumed and self.ranks.first:
            RunFolder.check_free(out)
        set_threads(config.threads or int(record.get("threads", 0)))
        self.budget = Budget.parse(config.budget) if config.budget else None
        check_sampler(config.sampler)
        self.recipe = get_recipe(config.recipe)(**config.arguments)
        files = {"verifier": config.verifier, "validation": config.validation, "test": config.test}
        self.task = task or get_task(config.task, **files)
        self.recipe.check(self.task)
        own = {stage.task.spec(): stage.task for stage in self.recipe.stages if stage.task}
        for trained in {self.task.spec(): self.task, **own}.values():
            check_splits(trained, evaluates=config.eval_every > 0)
            check_gold(trained)
        self.weights = get_weights(config.weights)
        own = [stage.weights.name for stage in self.recipe.stages if stage.weights]
        if own and config.weights != "full":
            raise WhetError(f"recipe '{config.recipe}' says itself which weights move ({', '.join(dict.fromkeys(own))}); leave "
                            f"--weights {config.weights} out")  # fmt: skip
        check_bits(self.recipe.stages, self.weights, base=config.quantize != "none", moments=config.optimizer == "adamw8bit",
                   shard=config.shard)  # fmt: skip
        if config.shard:
            check_shards(self.recipe.stages, self.weights)
            if self.ranks.size == 1:
                log.info("--shard: this is one process alone, and nothing is cut; start it by torchrun")
        self.plan = self._plan()
        probes = [*get_probes(config.probes or ()), *self.recipe.probes]
        self.evaluator = Evaluator(self.task, self.plan, self.recipe.answering, probes)
        if self.ranks.first:
            _made(config.model)
        self.ranks.broadcast(None)  # the others find it made
        self.policy = base.load(
            _made(config.model), device=config.device, dtype=config.dtype, allow_pickle=config.allow_pickle,
            trust_remote_code=config.trust_remote_code, quantize=config.quantize,
        )  # fmt: skip
        self.policy.ranks = self.ranks
        self.policy.asked_sampler = config.sampler
        self.hash = base.weights_hash(self.policy.model)
        self.evaluator.bind(self.policy)
        for what, name, now in (
            ("model_hash", self.policy.name, self.hash),
            ("data_hash", self.task.spec(), self.data()),
        ):
            if self.resumed and record.get(what) != now:
                raise WhetError(f"'{name}' has changed since this run began; it cannot be resumed")
        for stage in self.recipe.stages:
            check_rows(stage, stage.task or self.task, self.policy)
            for update in stage.updates:
                update.loss.check(self.policy)
        if config.activation_checkpointing:
            self.policy.checkpointing = True
            self.policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        asked = config.dump(self.record()) if out is not None else ""
        if out is not None and not self.resumed and self.ranks.first:
            with mendable(f"name another --out than '{out}'", self._memory):
                write_atomic(RunFolder.create(out).config, asked)
        self.ranks.broadcast(None)
        self.folder = None if out is None else RunFolder.open(out)
        self.stop = stop

    @classmethod
    def reopen(
        cls, out: str | Path, *, task: Task | None = None, watcher: Watcher | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Run:  # fmt: skip
        """The run in a folder, to go on with."""
        folder = RunFolder.open(out)
        config, record = RunConfig.read(folder.config)
        if folder.summary.exists():
            raise WhetError(f"the run in '{out}' is finished; its model is in {folder.model}")
        return cls(config, out=out, task=task, watcher=watcher, stop=stop, record=record)

    @together()
    def go(self) -> Result:
        """Evaluate, train, evaluate again, save."""
        again = (
            f"go on from the last checkpoint by  whet run --resume {self.folder.path}" if self.folder else "start again"
        )
        with self.tracked or nullcontext(), mendable(f"mend that, then {again}", self._memory):
            return self._go()

    def _memory(self) -> str:
        return (f"{self.ranks.at or 'the run'}: out of memory; make it smaller: batch, group, max_new_tokens, --token-budget, "
                "--test-n, or --weights lora")  # fmt: skip

    def _go(self) -> Result:
        config, folder = self.config, self.folder
        if self.watcher:
            lines = [line for stage in self.recipe.stages for line in stage.describe()]
            self.watcher.start(config, self.policy, self.task, lines)
        before = self.before()
        options = Options(
            seed=config.seed, token_budget=config.token_budget, eval_every=config.eval_every, patience=config.patience,
            save_every=config.save_every, keep=config.keep, stop=self.stop, evaluations=config.evaluations,
            budget=self.budget, on_nonfinite=config.on_nonfinite, shard=config.shard,
            eight_bit=config.optimizer == "adamw8bit",
        )  # fmt: skip
        fit = Fit(self.policy, self.recipe.stages, self.task, weights=self.weights, options=options, folder=folder,
                  evaluate=self.evaluator.validation, observer=self.watcher, measure=self._stream())  # fmt: skip
        progress = fit.run(resume=self.resumed)
        if not (progress.finished or progress.stopped_early):
            return Result(self.policy, {}, folder, progress)
        after, others = self._measure("after")
        stream = self.recipe.stream
        if stream and progress.finished:
            after |= continual.summary(progress.measured, stream)
        summary = {
            "recipe": config.recipe,
            "task": self.task.spec(),
            "model": {"name": config.model or "base", "hash": self.hash, "parameters": self.policy.size()},
            "seed": config.seed,
            "steps": progress.total,
            "best_step": progress.best_step,
            "before": before["test"],
            "after": after,
            "suite": suite_of(config.others, config.others_n),
            **({"stream": list(stream)} if stream else {}),
            "others": {k: {"before": before["others"][k], "after": others[k]} for k in others},
            "compute": self.policy.meter.as_dict(),
            **({"sketches": sketches} if (sketches := self.evaluator.sketches(self.policy)) else {}),
        }
        summary = plain(summary)
        if self.tracked:
            self.tracked.summary(summary)
        if folder and self.ranks.first:
            folder.put_model(self.policy.save)
            write_atomic(folder.summary, json.dumps(summary, indent=1))
        return Result(self.policy, summary, folder, progress)

    def before(self) -> dict[str, Any]:
        """The evaluation before training; a resumed run reads what it measured the first time."""
        kept = self.folder and self.folder.path / "before.json"
        known = self.ranks.broadcast(json.loads(kept.read_text()) if kept and kept.exists() else None)
        if known is not None:
            return known
        if self.folder and self.ranks.first:
            self.folder.rewind({"samples.jsonl": 0})  # of an evaluation that was cut off
        test, others = self._measure("before")
        found = {"test": test, "others": others}
        if kept and self.ranks.first:
            write_atomic(kept, json.dumps(found))
        return found

    def _measure(self, when: str) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.watcher:
            self.watcher.phase(f"evaluating {when} training")
        self.ranks.at = f"the evaluation {when} training"
        greedy, sampled = self.evaluator.matrices(self.policy)
        if self.folder and self.ranks.first:
            self.folder.append_samples(sample_rows(greedy, when))
            both = {"greedy": greedy.as_dict(), "sampled": sampled.as_dict() if sampled else None}
            write_atomic(self.folder.path / f"matrix-{when}.json", json.dumps(plain(both)))
        summary = metrics.summary(greedy, sampled) | self.evaluator.measures(self.policy)
        summary |= self.evaluator.aspects(self.policy)
        return summary | self.evaluator.probed(self.policy, greedy), self.evaluator.forgetting(self.policy)

    def _stream(self) -> Stream | None:
        """What is measured between the stages of a recipe that trains on tasks in turn."""
        tasks = replace(self.plan, others=self.recipe.stream)
        return Stream(Evaluator(self.task, tasks, self.recipe.answering), self.policy) if tasks.others else None

    def _plan(self) -> Plan:
        config = self.config
        kept = tasks_of(config.others, self.task)
        return Plan(config.test_n, config.k, config.validation_n, kept, config.others_n, config.others_look_n)

    def data(self) -> str:
        """What the task's problems are a function of: a file's hash, or a generator's name and version."""
        return getattr(self.task, "fingerprint", None) or f"{self.task.name}/{self.task.version}"

    def record(self) -> dict[str, Any]:
        """What the run found: versions and hashes, for `run.yaml`."""
        packages = ("whet", "torch", "transformers", "tokenizers", "peft", "safetensors")
        return {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "versions": {"python": platform.python_version(), **{p: _version(p) for p in packages}},
            "model_hash": self.hash,
            "data_hash": self.data(),
            "threads": torch.get_num_threads(),
            "ranks": self.ranks.size,
        }


def check_splits(task: Task, *, evaluates: bool) -> None:
    """Refuse a task that has no problem in a split that will be asked for."""
    for split in ("train", "validation", "test") if evaluates else ("train", "test"):
        task.problems(split, 1)


def check_rows(stage: Stage, task: Task, policy: Policy, most: int = 4096) -> None:
    """Refuse problems that the model cannot learn from: a prompt that leaves no room for an answer, a row without a
    learnt token. Of a file the rows that the stage will draw are looked at, `most` at most; of a generator one batch.
    """
    problems, scope = stage.problems, Scope(task, 0)
    before = problems.state_dict()
    problems.bind(task, 0)
    n = stage.batch
    if "unlimited" not in task.provides():
        n = min(max(n, len(task.pool("train", most))), stage.batch * stage.steps)
    collect = stage.collect
    if collect.settings is None and type(collect).prepare is Collector.prepare:
        for start in range(0, n, LOOKED):
            for row in collect.rows(problems, min(LOOKED, n - start), policy, scope):
                for sample in row.all():
                    sample.check()
    else:
        for problem in problems.draw(n):
            length = sum(len(s.ids) for s in policy.format.prompt(problem))
            if length >= policy.max_length:
                where = getattr(task, "where", lambda p: f"problem '{p.id}'")(problem)
                raise WhetError(f"{where}: the prompt has {length} tokens and the model takes {policy.max_length}, the "
                                "answer included; drop the row or choose a model with a longer context")  # fmt: skip
    problems.load_state_dict(before)


def check_gold(task: Task, n: int = 64) -> None:
    """Refuse a task whose gold answers its own verifier does not score 1; say so where there is no verifier at all."""
    from whet.tasks.verify import check_gold as check

    if "verifier" in task.provides():
        check(task, task.problems("train", n))
    else:
        log.warning("task '%s' has no verifier: accuracy is not measured, before or after", task.name)


def _made(model: str | None) -> str | Path | None:
    """A model, or the base that a file describes (`--model mixture.yaml`)."""
    if model is None or not model.endswith((".yaml", ".yml")):
        return model
    from whet.bases import cached

    return cached(model)


def set_threads(threads: int) -> None:
    """CPU threads, always explicit: too many make small models far slower."""
    if threads == 0 and os.environ.get("OMP_NUM_THREADS", "").isdigit():
        threads = int(os.environ["OMP_NUM_THREADS"])
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or min(8, available))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "source"


__all__ = ["Result", "Run", "Stage", "Watcher", "resume", "run"]
