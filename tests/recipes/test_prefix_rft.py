"""Prefix-RFT: one answer of a group goes on from a demonstration; its limits are Dr.GRPO and (nearly) supervision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trained import trained_policy
from whet.errors import WhetError
from whet.recipes.recipe import get_recipe
from whet.records import Row
from whet.rewards import each
from whet.runs import RunFolder
from whet.seeds import seed_for
from whet.tasks import get_task
from whet.training.fit import Fit, Options
from whet.training.stage import Stage

SEED = seed_for(0, "problems")  # of a run's problems
SMALL = {"steps": 3, "batch": 4, "group": 4, "lr": 1e-3}


def stage_of(name: str = "prefix-rft", **arguments: Any) -> Stage:
    (stage,) = get_recipe(name)(**arguments).stages
    return stage


def run(stage: Stage, out: Path | None = None, resume: bool = False, **options: Any) -> Fit:
    if out is not None:
        out.mkdir(exist_ok=True)
    folder = RunFolder(out) if out is not None else None
    fit = Fit(trained_policy(), [stage], get_task("parity"), options=Options(**options), folder=folder)
    fit.run(resume=resume)
    return fit


def rows_of(name: str = "prefix-rft", **arguments: Any) -> list[Row]:
    stage = stage_of(name, **{**SMALL, "steps": 1, **arguments})
    learnt: list[Row] = []
    stage.transforms = [*stage.transforms, learnt.extend]
    run(stage)
    return learnt


def equal(a: Fit, b: Fit) -> bool:
    ours, theirs = dict(a.policy.named_parameters()), dict(b.policy.named_parameters())
    return all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_its_defaults() -> None:
    stage = stage_of()
    assert stage.updates[0].loss.describe() == "1 policy_gradient [constant] + 0.001 entropy_bonus [token]"
    assert stage.collect.group == 8 and stage.needs() == {"verifier", "demonstrations"}
    assert stage.wants() == set(), "one update: the ratio is 1 everywhere, the prefix too"
    assert stage_of(minibatches=2).wants() == {"old_logprob"}, "recomputed by the policy for the whole response"
    assert get_recipe("prefix-rft").arguments["normalise"].default == "constant"


def test_without_prefixes_it_is_dr_grpo_bit_for_bit() -> None:
    small = {**SMALL, "steps": 2}
    plain = run(stage_of("dr-grpo", **small, entropy=1e-3))
    assert equal(plain, run(stage_of(**small, high=0.0, end=0.0)))
    assert equal(plain, run(stage_of("luffy", **small, shown=0.0)))
    assert not equal(plain, run(stage_of(**small)))


def test_a_hybrid_shares_the_baseline_of_its_group() -> None:
    """Rewards 0, 0, 0 and 1: advantages -.25, -.25, -.25 and .75, the same at every token of an answer."""
    reward = each("hybrid", lambda attempt: float(attempt.row is not None and attempt.row["response"].rollout_id == 3))
    for i, row in enumerate(rows_of(reward=reward)):
        sample = row["response"]
        expected = 0.75 if i % 4 == 3 else -0.25
        assert sample.span_mask("prefix").any() == (i % 4 == 3)
        assert torch.equal(sample.per_token["advantage"], expected * sample.learn_mask), "prefix and continuation alike"


def test_the_reward_reads_prefix_and_continuation_as_one() -> None:
    """Nearly the whole demonstration: the answers that continue it are right, and the others are often wrong."""
    rows = rows_of(batch=16, high=1.0, end=1.0)
    hybrid = [r.numbers["accuracy"] for r in rows if r.numbers.get("given_tokens")]
    free = [r.numbers["accuracy"] for r in rows if not r.numbers.get("given_tokens")]
    assert len(hybrid) == 16 and sum(hybrid) / 16 > max(0.9, sum(free) / len(free))
    assert all(r.numbers["tokens"] + r.numbers.get("given_tokens", 0) == r["response"].count_learnt() for r in rows)


def test_prefixes_get_shorter(tmp_path: Path) -> None:
    run(stage_of(steps=8, batch=8, group=2, lr=0.0), tmp_path)
    lines = RunFolder(tmp_path).read_metrics()
    given = [line["given_tokens"] for line in lines]
    assert sum(given[:3]) > sum(given[-3:]) and given[0] == max(given)
    assert all("given_accuracy" in line and "given_entropy_kept" in line for line in lines)
    kept, every = (sum(line[k] for line in lines) for k in ("given_entropy_kept", "given_entropy"))
    assert kept > every, "the uncertain ones are learnt"


def test_a_resumed_run_goes_on_where_its_schedule_was(tmp_path: Path) -> None:
    whole = run(stage_of(**{**SMALL, "steps": 4}), tmp_path / "whole")
    halt = iter(range(1, 100))
    run(stage_of(**{**SMALL, "steps": 4}), tmp_path / "halted", stop=lambda: next(halt) >= 2)
    assert equal(whole, run(stage_of(**{**SMALL, "steps": 4}), tmp_path / "halted", resume=True))


def test_luffy_learns_a_whole_demonstration() -> None:
    rows = rows_of("luffy")
    policy = trained_policy()
    for i, row in enumerate(rows):
        whole = i % 4 == 3
        assert bool(row.numbers.get("given_tokens")) == whole
        if whole:
            assert row.numbers["accuracy"] == 1.0 and row.numbers["tokens"] == 0 and row["response"].ended
            gold = [policy.format.demonstration(p).segments for p in get_task("parity").problems("train", 8, seed=SEED)]
            assert row["response"].segments in gold


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"high": 0.3, "end": 0.5}, "share of a demonstration"), ({"top": 0}, "must be in"), ({"shown": 2}, "within 0 and 1"),
     ({"group": 0}, "at least 1"), ({"group": 1}, "no baseline"), ({"min_prefix": -1}, "0 or more")],
)  # fmt: skip
def test_what_cannot_work_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(WhetError, match=message):
        get_recipe("prefix-rft")(**arguments).check(get_task("parity"))
