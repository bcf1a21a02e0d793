"""Conditioned rows: where the condition stands, what is learnt, and that the policy is asked under it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import tiny_policy
from trained import trained_folder, trained_policy
from whet.errors import WhetError
from whet.launch import run
from whet.models.base import load
from whet.recipes.supervised.sft import sft_on
from whet.records import Row, Sample, Segment
from whet.sampling.sampler import SamplingSettings
from whet.sources import Attempts, Conditioned, Demonstrations, Scope, Stored, Uniform, ask
from whet.sources.conditioning import learn
from whet.tasks import get_task
from whet.training.fit import Fit, Options


def collector(
    announce: str = "[GOOD]", wanted: str | None = None, n: int = 24, samples: int = 0, **more: Any
) -> Conditioned:
    return Conditioned(
        Attempts("corruptor", samples), n, announce=lambda task, attempt: announce if attempt.right else "[BAD]",
        wanted=lambda task: announce if wanted is None else wanted, **more,
    )  # fmt: skip


def prepared(collect: Conditioned, policy: Any = None, seed: int = 0) -> list[Row]:
    problems = Uniform()
    task = get_task("parity")
    problems.bind(task, 0)
    collect.bind(task)
    collect.prepare(problems, policy or tiny_policy(style="tags"), Scope(task, seed))
    return collect.stored


@pytest.mark.parametrize(("loss_on", "targets"), [("response", 5), ("condition", 7), ("all", 11)])
def test_the_three_losses_by_hand(loss_on: str, targets: int) -> None:
    """Question 5 tokens, prefix 2, rationale 4 and the end; the very first token has nothing to be predicted from."""
    sample = Sample([
        Segment("question", [1, 2, 3, 4, 5]), Segment("condition", [6, 7]),
        Segment("rationale", [8, 9, 10, 11], learn=True), Segment("eos", [0], learn=True),
    ])  # fmt: skip
    found = learn(sample, loss_on)
    assert found.ids == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0]
    assert found.count_learnt() == targets
    assert bool(found.learn_mask[-targets:].all()) and not found.learn_mask[:-targets].any()
    found.check()


@pytest.mark.parametrize("style", ["tags", "chat", "plain"])
def test_the_condition_stands_between_prompt_and_response_and_is_no_part_of_the_answer(style: str) -> None:
    policy = tiny_policy(style=style)
    problem = get_task("parity").problem("train", 0)
    fmt = policy.format
    bare, told = fmt.prompt(problem), fmt.prompt(problem, condition="[GOOD]")
    assert [s.kind for s in told] == ["question", "condition"] and told[0].ids == bare[0].ids
    assert told[1].ids == fmt.encode("[GOOD]" if style == "tags" else "[GOOD]\n")
    fmt.condition = "[GOOD]"
    assert fmt.prompt(problem) == told and fmt.prompt(problem, condition="") == bare
    sample = fmt.demonstration(problem)
    assert [s.kind for s in sample.segments] == ["question", "condition", "rationale", "answer", "eos"]
    read = fmt.read(sample)
    assert read.answer == problem.answer and "GOOD" not in read.text and "GOOD" not in read.rationale


def test_rows_are_announced_for_what_they_are() -> None:
    policy = tiny_policy(style="tags")
    collect = collector(samples=1)
    rows = prepared(collect, policy)
    assert collect.condition == "[GOOD]"
    for row in rows:
        (told,) = [s for s in row["response"].segments if s.kind == "condition"]
        assert told.ids == policy.format.encode("[GOOD]" if row.numbers["right"] else "[BAD]")
        assert not told.learn
    counts = collect.counts
    assert counts["rows"] == 48 and counts["right rows"] == counts["announced as wanted"] == 24


def test_conditions_are_dropped_at_a_rate_and_rows_that_are_too_long_are_left_out() -> None:
    dropped = collector(n=200, drop=0.5)
    rows = prepared(dropped)
    bare = sum(all(s.kind != "condition" for s in row["response"].segments) for row in rows)
    assert 70 < bare < 130 and dropped.counts["announced as wanted"] == 200 - bare
    assert [r.state() for r in rows] == [r.state() for r in prepared(collector(n=200, drop=0.5))]
    short = tiny_policy(style="tags", max_position_embeddings=16)
    with pytest.raises(WhetError, match=r"found nothing to learn from .*too long 24"):
        prepared(collector(), short)


def test_refusals() -> None:
    for arguments, message in (
        ({"n": 0}, "at least 1"),
        ({"loss_on": "respons"}, "did you mean"),
        ({"drop": 1.5}, "0 to 1"),
    ):
        with pytest.raises(WhetError, match=message):
            collector(**arguments)
    with pytest.raises(WhetError, match="rationale=false"):
        sft_on(collector(), rationale=False)


class Given(Stored):
    """Demonstrations of fixed problems, with or without a prefix, made without the pool."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = self.condition = prefix

    def build(self, problems: Any, policy: Any, scope: Scope) -> list[Row]:
        rows = Demonstrations().rows(problems, 24, policy, scope)
        for row in rows:
            segments = row["response"].segments
            row["response"].segments = [
                segments[0], *([policy.format.announcement(self.prefix)] if self.prefix else []), *segments[1:],
            ]  # fmt: skip
        return rows


@pytest.mark.parametrize("prefix", ["[GOOD]", ""])
def test_without_wrong_rows_it_is_sft_behind_the_prefix_and_without_the_prefix_it_is_sft(prefix: str) -> None:
    weights = []
    for collect in (collector(prefix), Given(prefix)):
        fit = Fit(
            trained_policy(), sft_on(collect, steps=3, batch=4).stages, get_task("parity"), options=Options(seed=0)
        )
        fit.run()
        assert fit.policy.format.condition == prefix
        weights.append(fit.policy.model.state_dict())
    start = trained_policy().model.state_dict()
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in start)
    assert any(not torch.equal(weights[0][n], start[n]) for n in start)


def test_evaluation_and_the_saved_model_are_asked_under_the_condition(tmp_path: Path) -> None:
    quick: dict[str, Any] = {"test_n": 4, "validation_n": 4, "k": 0, "others": [], "eval_every": 1}
    done = run(
        "mistake-tuning",
        model=trained_folder(),
        task="parity",
        steps=2,
        batch=4,
        limit=8,
        out=tmp_path / "run",
        **quick,
    )
    told = "[CORRECT RATIONALE]"
    assert done.policy.format.condition == told
    loaded = load(tmp_path / "run" / "model")
    assert loaded.format.condition == told
    problems = get_task("parity").problems("test", 3)
    settings = SamplingSettings(max_new_tokens=8, temperature=0.0)
    for policy in (done.policy, loaded):
        for (sample,) in ask(policy, problems, settings, 1, 0):
            assert [s.kind for s in sample.segments[:2]] == ["question", "condition"]
            assert policy.format.decode(sample.segments[1].ids) == told
    assert load(trained_folder()).format.condition == ""


def test_what_was_best_before_the_condition_is_not_put_back() -> None:
    """The start answers another prompt; its accuracy says nothing about the conditioned policy."""
    seen: list[str] = []

    def evaluate(policy: Any) -> dict[str, float]:
        seen.append(policy.format.condition)
        return {"accuracy": 1.0 - len(seen) / 10}

    fit = Fit(trained_policy(), sft_on(collector(), steps=2, batch=4).stages, get_task("parity"),
              options=Options(eval_every=1), evaluate=evaluate)  # fmt: skip
    assert fit.run().best_step == 1
    assert seen == ["", "[GOOD]", "[GOOD]"]


def test_a_warm_up_samples_with_a_taught_policy_and_starts_again_from_the_base() -> None:
    first, second = sft_on(collector(), warm=5, steps=3, batch=4, limit=24).stages
    assert (first.steps, first.name, second.steps, second.start) == (5, "warm-up", 3, "base")
    assert isinstance(first.collect, Demonstrations) and first.collect.condition is None
