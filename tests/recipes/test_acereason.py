"""acereason: stages that hand on what they should, one update a batch, the token mean, cut-off answers, and the pass rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny import tiny_policy
from trained import trained_folder, trained_policy
from whet.errors import WhetError
from whet.launch import resume, run
from whet.objectives import Context
from whet.recipes.recipe import get_recipe
from whet.records import Row, Sample, Segment
from whet.runs import RunFolder
from whet.sources import Distilled, EntropyTarget, Filtered, Rollouts, Uniform
from whet.tasks import get_task
from whet.training.fit import Fit, Options
from whet.training.stage import Stage

SMALL: dict[str, Any] = {"steps": 3, "batch": 4, "group": 4, "sft_steps": 1, "prompts": 8, "sft_batch": 4, "pool": 12, "looks": 4,
                         "shares": [0.0, 1.0]}  # fmt: skip


def stages_of(**arguments: Any) -> list[Stage]:
    return get_recipe("acereason")(**{**SMALL, **arguments}).stages


def fitted(stages: list[Stage], folder: Path | None = None, **options: Any) -> Fit:
    fit = Fit(
        trained_policy(),
        stages,
        get_task("parity"),
        options=Options(**options),
        folder=RunFolder(folder) if folder else None,
    )
    fit.run()
    return fit


def lines(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in RunFolder(folder).read_metrics()]


def test_without_its_parts_it_is_grpo() -> None:
    off: dict[str, Any] = {"sft_steps": 0, "budgets": [1.0], "overlong": 0, "keep_from": 0, "temperature": 1.0}
    plain = get_recipe("grpo")(steps=3, batch=4, group=4, normalise="token").stages
    ours, theirs = (dict(fitted(s).policy.named_parameters()) for s in (stages_of(**off), plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    other = dict(fitted(stages_of(**{**off, "temperature": 0.0})).policy.named_parameters())
    assert any(not torch.equal(other[name], theirs[name]) for name in other)


def test_the_token_mean() -> None:
    """Answers of 1 and 3 tokens with advantages 1 and -1: -(1 - 3) / 4, and not 0."""
    policy, rows = tiny_policy("gpt2", dtype=torch.float64), []
    for tokens, advantage in ((1, 1.0), (3, -1.0)):
        sample = Sample([Segment("question", [5, 6]), Segment("answer", [8] * tokens, learn=True)], "p", "0/p")
        sample.per_token["advantage"] = torch.tensor([0.0, 0.0] + [advantage] * tokens)
        rows.append(Row({"response": sample}))
    objective = stages_of()[1].updates[0].loss
    counts = objective.counts(rows)
    ((total, count),) = objective.total(Context(rows, {"policy": policy}, counts)).values()
    assert count == 4 and float((total / count).detach()) == pytest.approx(0.5)


def test_what_changes_from_stage_to_stage_and_what_goes_on(tmp_path: Path) -> None:
    stages = stages_of(overlong=2, budgets=[0.5, 0.75, 1.0])
    assert [s.name for s in stages] == ["sft", "rl 1", "rl 2", "rl 3"]
    rl = stages[1:]
    assert isinstance(stages[0].collect, Distilled) and [s.carry for s in stages] == [False, False, True, True]
    assert [len(s.transforms) for s in rl] == [1, 1, 0]
    assert [type(s.problems) for s in rl] == [Uniform, Filtered, Filtered]
    assert not any(s.wants() for s in stages), "there is no reference, and nothing is scored twice"
    assert all(u.steps == 1 for s in rl for u in s.updates)
    task = get_task("parity")
    for stage in rl:
        stage.collect.bind(task)
    assert [s.collect.budget for s in rl] == [7, 10, 14]
    fit = fitted(stages, tmp_path)
    moments = next(iter(fit.learners[0].optimizer.state.values()))
    assert float(moments["step"]) == 3, (
        "one optimizer step in each stage of reinforcement, and the supervised one's are its own"
    )
    temperatures = {line["stage"]: line["temperature"] for line in lines(tmp_path) if "temperature" in line}
    assert list(temperatures) == ["rl 1", "rl 2", "rl 3"] and len(set(temperatures.values())) > 1
    assert [s.collect.settings.max_new_tokens for s in rl if s.collect.settings] == [7, 10, 14]


def test_every_step_is_on_policy(tmp_path: Path) -> None:
    fitted(stages_of(steps=4, overlong=3, budgets=[0.5, 1.0]), tmp_path)
    steps = [line for line in lines(tmp_path) if "ratio_max" in line]
    assert len(steps) == 4
    for line in steps:
        assert line["ratio_max"] == pytest.approx(1.0, abs=1e-6) and line["clip_fraction"] == 0.0
        assert line["mismatch"] < 1e-4, "the sampler's log-probs are those of the loss, at the stage's temperature"


def test_cut_off_answers_are_not_learnt_nor_counted() -> None:
    learnt: list[Row] = []
    (_, stage) = stages_of(budgets=[6], temperature=1.5, steps=1, batch=6)
    stage.transforms = [*stage.transforms, learnt.extend]
    fitted([stage])
    cut = [row for row in learnt if not row["response"].ended]
    kept = [row for row in learnt if row["response"].ended]
    assert cut and kept and all(row["response"].count_learnt() == 0 for row in cut)
    (count,) = stage.updates[0].loss.counts(learnt).values()
    assert count == sum(len(s.ids) for row in kept for s in row["response"].segments if s.sampled)
    for group in {row.group_id for row in cut}:
        own = [row for row in learnt if row.group_id == group]
        mean = np.mean([row.numbers["reward"] for row in own])
        signs = {np.sign(r.numbers["advantage"]) == np.sign(round(r.numbers["reward"] - mean, 9)) for r in own}
        assert signs == {True}, "cut-off answers stay in their group's statistics"


def test_the_pass_rate() -> None:
    """At most 6 of 16, and by default at least one."""
    accuracy = np.array([[1.0] * right + [0.0] * (16 - right) for right in range(17)])
    kept = {name: np.flatnonzero(stages_of(shares=keep)[-1].problems.rule(accuracy)).tolist()  # type: ignore[attr-defined]
            for name, keep in (("default", None), ("with 0", [0, 6 / 16]))}  # fmt: skip
    assert kept == {"default": [1, 2, 3, 4, 5, 6], "with 0": [0, 1, 2, 3, 4, 5, 6]}


def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    """Stopped in every stage: temperatures, what they follow, filters and moments go on."""
    settings = {"test_n": 4, "validation_n": 4, "k": 0, "others": [], "eval_every": 0, "model": trained_folder(), "task": "parity",
                **SMALL, "steps": 4, "budgets": [0.5, 1.0], "follow": 0.5}  # fmt: skip
    whole = run("acereason", out=tmp_path / "whole", **settings)
    run("acereason", out=tmp_path / "halted", stop=lambda: True, **settings)
    for _ in range(3):
        resume(tmp_path / "halted", stop=lambda: True)
    done = resume(tmp_path / "halted")
    assert done.progress == whole.progress and lines(tmp_path / "halted") == lines(tmp_path / "whole")
    ours, theirs = dict(done.policy.named_parameters()), dict(whole.policy.named_parameters())
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_it_takes_from_grpo() -> None:
    *_, last = stages_of(group=5, advantage="group-mean")
    assert (
        isinstance(last.collect, Rollouts) and last.collect.group == 5 and isinstance(last.collect.aim, EntropyTarget)
    )
    assert len(stages_of(sft_steps=0, budgets=[1.0])) == 1


def test_what_cannot_be_is_refused() -> None:
    for arguments, says in (
        ({"max_new_tokens": 9}, "said for each stage, by budgets"),
        ({"filter_truncated": True}, "said for each stage, by overlong"),
        ({"temperature": 0.7, "follow": 0.5}, "leave temperature at 0"),
        ({"dynamic": True, "follow": 0.5}, "must have one temperature"),
        ({"budgets": []}, "budgets is a list"),
        ({"budgets": [0.5, 0.0]}, "budgets is a list"),
        ({"budgets": [3.5]}, "whole number"),
        ({"shares": [0.5, 0.2]}, "low <= high"),
        ({"shares": [0.5]}, r"shares is \[low, high\]"),
        ({"responses": 0}, "at least one response"),
    ):
        with pytest.raises(WhetError, match=says):
            stages_of(**arguments)
