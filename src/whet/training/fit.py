"""THE loop. It is blind to the algorithm: stages say where rows come from and what is learnt from them.

What a step does is in `training.step`; here are the stages, the evaluations and what is saved. All randomness is a function of
(seed, stage, step), so that a run resumed from a checkpoint is the run that was not interrupted, bit for bit. Under several
ranks each of them takes this same way, with the same rows; the work inside is dealt out (`whet.ranks`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from whet.errors import WhetError
from whet.models.packing import token_budget
from whet.models.policy import Policy
from whet.models.sharded import Sharded
from whet.ranks import together
from whet.records import Row
from whet.runs import RunFolder
from whet.seeds import seed_for
from whet.sources import Scope, calibration_rows
from whet.tasks import Task
from whet.training import checkpoint
from whet.training.budget import Pace
from whet.training.guards import Guards
from whet.training.learner import Learner, minibatches
from whet.training.memory import check_shards
from whet.training.options import Evaluation, Measurement, Observer, Options, Progress
from whet.training.snapshots import copy_weights, frozen_copy, write_weights
from whet.training.stage import Stage
from whet.training.step import Step
from whet.weights import Weights


class Fit:
    """Run stages on a policy.

    Args:
        policy: changed in place.
        stages: in order.
        task: the run's task.
        weights: which parameters move, for stages that do not say.
        folder: where metrics and checkpoints go; None keeps nothing. The first rank writes.
        evaluate: called on validation, on every rank; must return `accuracy`, and may return its standard `error`. A stage
            with a task of its own is evaluated on that: `evaluate(policy, task)`.
        measure: called at the start and after each stage; what it returns is kept in `progress.measured`.
    """

    def __init__(
        self, policy: Policy, stages: Sequence[Stage], task: Task, *, weights: Weights | None = None,
        options: Options | None = None, folder: RunFolder | None = None, evaluate: Evaluation | None = None,
        observer: Observer | None = None, measure: Measurement | None = None,
    ) -> None:  # fmt: skip
        self.policy = policy
        self.stages = list(stages)
        self.task = task
        self.weights = weights or Weights()
        self.options = options or Options()
        self.token_budget = token_budget(self.options.token_budget, policy.device.type)
        self.ranks = policy.ranks
        self.folder = folder
        self.writer = folder if self.ranks.first else None
        self.evaluate = evaluate
        self.observer = observer
        self.measure = measure
        self.progress = Progress()
        self.guards = Guards()
        self.policies: dict[str, Policy] = {"policy": policy}
        self._base: dict[str, Tensor] = {}
        self._best: dict[str, Tensor] = {}
        self._attached: Weights | None = None
        self._same_weights = len({id(self._stage_weights(s)) for s in self.stages}) == 1
        redrawn = len(self.stages) > 1 and self._stage_weights(self.stages[0]).redraws
        self._same_parameters = self._same_weights and not redrawn
        for index, stage in enumerate(self.stages):
            stage.check()
            if stage.reward is not None:
                stage.reward.bind(policy)
            if stage.until and not (evaluate and self.options.eval_every):
                raise WhetError(f"stage '{stage.name}' ends at an accuracy on validation: set eval_every to look at it")
            if stage.carry and (not index or len(stage.updates) != len(self.stages[index - 1].updates)):
                raise WhetError(f"stage '{stage.name}' carries on the optimizers of the stage before, which has none or others; "
                                "begin fresh ones")  # fmt: skip
        self._check_base()
        self.shards: Sharded | None = None
        self.cuts = self.options.shard and self.ranks.size > 1
        if self.cuts:
            check_shards(self.stages, self.weights)
        self.pace = Pace([s.steps for s in self.stages], self.options.budget)

    def _check_base(self) -> None:
        """The base is put back by writing the parameters that the run began with; adapters that came in or were merged
        since would stay as they were trained."""
        injects = [self._stage_weights(s).injects for s in self.stages]
        for index, stage in enumerate(self.stages):
            anchored = stage.reference == "base" and stage.wants() & {"reference", "reference_logprob"}
            if (stage.start == "base" or anchored) and len(set(injects[: index + 1])) > 1:
                raise WhetError(f"stage '{stage.name}' goes back to the run's base, but adapters came in or were merged since: "
                                "give adapters to all stages or to none, or start from 'last'")  # fmt: skip

    # -- the whole run ----------------------------------------------------------------------------------------------
    @together()
    def run(self, resume: bool = False) -> Progress:
        """Run to the end, or from the newest checkpoint to the end."""
        state = self._restore_point() if resume else None
        self._attach(self.stages[0])
        if any(s.start == "base" or s.reference == "base" for s in self.stages):
            self._base = self._copy_weights()
        if state is None and self.evaluate and self.options.eval_every:
            self._evaluate()
        if state is None:
            self._measure()
        start = self.progress.stage
        for earlier in self.stages[:start]:  # a resumed run has the adapters and modules of the stages before
            self._attach(earlier)
            self._add_modules(earlier)
            earlier.collect.bind(earlier.task or self.task)
            self._announce(earlier)
        for index in range(start, len(self.stages)):
            self._enter(index, state if index == start else None)
            if self.progress.over or not self._run_stage(self.stages[index]):
                break
            if index < len(self.stages) - 1:
                self._stage_weights(self.stages[index]).at_stage_end(self.policy)
                self._measure()
        else:
            self.progress.finished = True
        if self.progress.over:
            self._end()
        return self.progress

    def first_rows(self) -> list[Row]:
        """The rows that the first step would learn from, to be looked at."""
        stage = self.stages[0]
        self._attach(stage)
        self._enter(0, None)
        return self.step.rows(seed_for(self.options.seed, "stage", 0, "step", 0))[1]

    def _run_stage(self, stage: Stage) -> bool:
        """The steps of the current stage; False when the run was told to stop."""
        options, progress = self.options, self.progress
        while not progress.reached and not self.pace.over(progress, self.policy.meter):
            began = time.perf_counter()
            row = self._step(stage)
            self.policy.meter.seconds += time.perf_counter() - began
            self.policy.meter.sum(self.ranks)
            progress.step += 1
            progress.total += 1
            spent = {"flops": self.policy.meter.flops, "share": self.pace.share(progress, self.policy.meter)}
            if warnings := [*row.get("warnings", ()), *self.guards.see(row)]:
                row["warnings"] = warnings
            self._note({"step": progress.total, "stage": stage.name, **row, **spent})
            kept = stage.keep_every and progress.step % stage.keep_every == 0
            if self.writer and (kept or (options.milestones and progress.total.bit_count() == 1)):
                place = self.writer.path / "milestones"
                place.mkdir(exist_ok=True)
                save_file(self._copy_weights(), place / f"step-{progress.total:08d}.safetensors")
            if self.evaluate and options.eval_every and self._due(spent["share"]):
                self._evaluate()
            progress.reached = progress.reached or stage.problems.done
            told = options.stop is not None and bool(self.ranks.sum({"told": options.stop()})["told"])
            progress.stopped_early = bool(options.patience) and progress.stale >= options.patience
            if told or progress.stopped_early or (options.save_every and progress.total % options.save_every == 0):
                self._save()
            if told or progress.stopped_early:
                return False
        return True

    def _step(self, stage: Stage) -> dict[str, Any]:
        progress = self.progress
        seed = seed_for(self.options.seed, "stage", progress.stage, "step", progress.step)
        within = self._within()
        share = progress.step / stage.steps if within is None else within
        return self.step.take(seed, share, f"step {progress.total + 1}")

    def _due(self, share: float) -> bool:
        """Whether to evaluate after this step: every so often, and after the last."""
        options, progress = self.options, self.progress
        looks = int(share * options.evaluations)
        due = looks > progress.looks if options.evaluations else progress.total % options.eval_every == 0
        progress.looks = looks
        over = self.pace.over(progress, self.policy.meter) or self.stages[progress.stage].problems.done
        return due or (progress.stage == len(self.stages) - 1 and over)

    def _end(self) -> None:
        if self.options.keep == "best" and self._best and self.progress.best_step != self.progress.total:
            write_weights(self.policy, self._best)
        self._stage_weights(self.stages[self.progress.stage]).at_stage_end(self.policy)
        if len(self.progress.measured) == self.progress.stage + 1:  # not so where a run that had ended is only saved
            self._measure()
        self._save()

    def _within(self) -> float | None:
        """The spent share of the stage, for schedules; None where its steps are counted."""
        if self.options.budget:
            self.policy.meter.sum(self.ranks)
        return self.pace.within(self.progress, self.policy.meter)

    # -- a stage ----------------------------------------------------------------------------------------------------
    def _stage_weights(self, stage: Stage) -> Weights:
        return stage.weights or self.weights

    def _enter(self, index: int, state: Mapping[str, Any] | None) -> None:
        """Make a stage ready: data made by the policy so far, start weights, reference, optimizers; or restore them."""
        stage, options = self.stages[index], self.options
        task = stage.task or self.task
        self.scope = Scope(task, seed_for(options.seed, "stage", index))
        other = self._stage_weights(stage) is not self._attached or stage.task is not self.stages[index - 1].task
        if state is None and index and (other or stage.start == "base"):
            # other parameters move from here on, or from the base again, or validation looks at another task: what was best so far
            # no longer counts
            self._best, self.progress.best, self.progress.best_step = {}, float("-inf"), -1
        self._attach(stage)
        self._add_modules(stage)
        stage.problems.bind(task, seed_for(options.seed, "problems"))
        stage.collect.bind(task)
        if state is None:
            self.progress.stage, self.progress.step, self.progress.reached = index, 0, False
            self.policy.model.eval()
            began = time.perf_counter()
            stage.problems.prepare(self.policy, self.scope)
            stage.collect.prepare(stage.problems, self.policy, self.scope)
            self._share_made(stage)
            self.policy.meter.seconds += time.perf_counter() - began
            self.policy.meter.sum(self.ranks)
            self.pace.enter(self.progress, self.policy.meter, stage.name)
            if stage.collect.condition not in (None, self.policy.format.condition):
                # answers are announced otherwise from here on: the best ones so far were to another prompt
                self._best, self.progress.best, self.progress.best_step = {}, float("-inf"), -1
            if stage.start == "base":
                self._stage_weights(stage).before_rewind(self.policy, self._base)
                write_weights(self.policy, self._base)
        self._announce(stage)
        self._make_reference(index, stage, fresh=state is None)
        weights = self._stage_weights(stage)
        if state is None:
            weights.at_stage_start(self.policy)
        else:
            write_weights(self.policy, state["weights"])
            weights.load_state_dict(state["parts"]["weights"])
            self.policy.meter.load(state["meter"])  # attaching weights may calibrate, which was counted the first time
        self.guards.enter(stage, self.policy)
        before = self.learners if stage.carry and state is None else []
        self.learners, self.shards = [], None  # of the stage before, whose memory is needed
        self.shards = Sharded(self.policy) if self.cuts else None
        self.learners = [
            Learner(
                update, self.policies, weights, steps=stage.steps * update.steps, token_budget=self.token_budget,
                temperature=update.temperature or stage.collect.temperature, budget=stage.collect.budget, share=self._within,
                skip=options.on_nonfinite == "skip", shards=self.shards, eight_bit=options.eight_bit,
            )
            for update in stage.updates
        ]  # fmt: skip
        for learner, held in zip(self.learners, before, strict=bool(before)):
            learner.carry(held)
        self.step = Step(stage, self.policies, self.learners, self.scope, self.token_budget)
        if state is not None:
            parts = state["parts"]
            stage.load_state_dict(parts["stage"])
            self.step.references.load_state_dict(parts["references"])
            self.guards.load_state_dict(parts["guards"])
            for learner, saved in zip(self.learners, parts["learners"], strict=True):
                learner.load_state_dict(saved)
        made = {**stage.problems.counts, **stage.collect.counts}
        if made and state is None and self.writer:
            counts = {f"collected/{what}": n for what, n in made.items()}
            self.writer.append_metrics({"step": self.progress.total, "stage": stage.name, **counts})
        if self.observer:
            self.observer.stage(index, stage, [*stage.describe(), *(f"  {what}: {n}" for what, n in made.items())])

    def _attach(self, stage: Stage) -> None:
        weights = self._stage_weights(stage)
        weights.bind(partial(calibration_rows, self.policy, stage.task or self.task, self.options.seed))
        if weights is not self._attached:
            weights.attach(self.policy, self.options.seed)
            self._attached = weights

    def _share_made(self, stage: Stage) -> None:
        """What was made at entry is the first rank's: it may rest on a clock (a verdict that came too late)."""
        for part in (stage.problems, stage.collect):
            made = self.ranks.broadcast(part.state_dict())
            if not self.ranks.first:
                part.load_state_dict(made)

    def _announce(self, stage: Stage) -> None:
        if stage.collect.condition is not None:
            self.policy.format.condition = stage.collect.condition

    def _add_modules(self, stage: Stage) -> None:
        for name, make in stage.modules.items():
            if name not in self.policy.modules:
                torch.manual_seed(seed_for(self.options.seed, "module", name))
                self.policy.modules[name] = make(self.policy).to(self.policy.device)

    def _make_reference(self, index: int, stage: Stage, *, fresh: bool) -> None:
        """A frozen model of the stage's start or of the run's base; with new adapters, the policy without them."""
        self.policies.pop("reference", None)
        if not stage.wants() & {"reference", "reference_logprob"}:
            return
        at_base = index == 0 or stage.start == "base" or stage.reference == "base"
        if at_base and self.policy.peft is not None and self.policy.fresh_adapters and self._same_weights:
            self.policies["reference"] = self.policy
            return
        stored = self.folder and self.folder.path / "snapshots" / f"stage-{index}.safetensors"
        if at_base:
            weights = self._base or self._copy_weights()  # when resuming, nothing was restored yet
        elif fresh:
            weights = self._copy_weights()
            if stored and self.writer:
                stored.parent.mkdir(exist_ok=True)
                save_file(weights, stored)
        else:
            assert stored is not None, "a run without a folder cannot be resumed"
            weights = load_file(stored)
        self.policies["reference"] = frozen_copy(self.policy, weights)

    # -- evaluation and saving --------------------------------------------------------------------------------------
    def _evaluate(self) -> None:
        """Look at validation. Kept are the latest weights within one standard error of the best: a lucky evaluation
        early on must not throw the rest of the training away."""
        assert self.evaluate is not None
        self.ranks.at = "evaluation"
        stage = self.stages[self.progress.stage]
        found = self.ranks.broadcast(self.evaluate(self.policy, *([stage.task] if stage.task else [])))
        progress, value = self.progress, found["accuracy"]
        progress.reached = 0 < stage.until <= value
        improved = value > progress.best
        progress.stale = 0 if improved else progress.stale + 1
        progress.best = value if improved else progress.best
        if improved or value > progress.best - found.get("error", 0.0):
            progress.best_step = progress.total
            if self.options.keep == "best":
                self._best = self._copy_weights()
        row = {"step": progress.total, **{f"validation/{k}": v for k, v in found.items()}}
        if self.writer:
            self.writer.append_metrics(row)
        if self.observer:
            self.observer.evaluated(row)

    def _measure(self) -> None:
        """Note what is measured at the start and between stages."""
        if self.measure is None:
            return
        self.ranks.at = "what is measured between stages"
        found = self.ranks.broadcast(self.measure(self.policy))
        self.progress.measured.append(found)
        if self.writer:
            self.writer.append_metrics({"step": self.progress.total, **{f"measured/{k}": v for k, v in found.items()}})

    def _note(self, row: Mapping[str, Any]) -> None:
        if self.writer:
            self.writer.append_metrics(row)
        if self.observer:
            self.observer.step(row)

    def _save(self) -> None:
        if self.ranks.size > 1:
            moved = self.policy.trainable_parameters().values()
            self.ranks.agree("their weights", [float(p.detach().double().sum()) for p in moved])
        if self.folder is None or not (self.writer or self.shards):
            return
        stage = self.stages[self.progress.stage]
        parts = {
            "stage": stage.state_dict(),
            "weights": self._stage_weights(stage).state_dict(),
            "learners": [learner.state_dict() for learner in self.learners],
            "references": self.step.references.state_dict(),
            "guards": self.guards.state_dict(),
        }
        state = {
            "progress": vars(self.progress).copy(),
            "meter": self.policy.meter.as_dict(),
            "files": self.writer.position() if self.writer else {},
            "parts": parts,
            "best": self._best,
        }
        checkpoint.save(self.folder.checkpoints, self.progress.total, self._copy_weights(), state, ranks=self.ranks)

    def _restore_point(self) -> dict[str, Any] | None:
        """The newest checkpoint's state; the growing files are cut back to it."""
        if self.folder is None:
            raise WhetError("a run without a folder cannot be resumed")
        whole = self.ranks.broadcast(checkpoint.newest(self.writer.checkpoints) if self.writer else None)
        if whole is None:
            if self.writer:
                self.writer.rewind({"metrics.jsonl": 0})
            return None
        weights, state = checkpoint.load(whole)
        self.progress = Progress(**state["progress"])
        self.policy.meter.load(state["meter"])
        if self.writer:
            self.writer.rewind(state["files"])
        self._best = state["best"]
        return {"weights": weights, "parts": state["parts"], "meter": state["meter"]}

    # -- weights ----------------------------------------------------------------------------------------------------
    def _copy_weights(self) -> dict[str, Tensor]:
        """Copies of everything that moves in any stage, by name (tied weights once)."""
        return copy_weights(self.policy, moving=self._same_parameters)


__all__ = ["Evaluation", "Fit", "Observer", "Options", "Progress", "frozen_copy", "minibatches"]
