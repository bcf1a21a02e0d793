"""Memory-R in the loop: with weights 0 it is grpo, accuracy stays raw, dead groups learn, and a checkpoint keeps the memories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trained import trained_folder, trained_policy
from whet.errors import WhetError
from whet.launch import resume, run
from whet.models.embedding import MeanHidden
from whet.recipes.recipe import get_recipe
from whet.records import Row
from whet.rewards import accuracy, each
from whet.rewards.memory import Recall
from whet.sources import groups_of
from whet.tasks import Problem, Response, Task, Verdict, get_task
from whet.training.fit import Fit

SMALL: dict[str, Any] = {"steps": 3, "batch": 3, "group": 4}
QUICK: dict[str, Any] = {"task": "parity", "test_n": 4, "validation_n": 4, "k": 0, "others": [], "eval_every": 0}


def fit(name: str, **arguments: Any) -> tuple[Fit, list[Row]]:
    """A run and all of its rows."""
    (stage,) = get_recipe(name)(**{**SMALL, **arguments}).stages
    rows: list[Row] = []
    stage.transforms = [*stage.transforms, rows.extend]
    found = Fit(trained_policy(), [stage], get_task("parity"))
    found.run()
    return found, rows


def same(a: Fit, b: Fit) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.policy.model.parameters(), b.policy.model.parameters(), strict=True))


def test_weights_of_zero_are_grpo() -> None:
    """Test 4, bit for bit, and at no cost."""
    plain, rows = fit("grpo", kl=0.1)
    zero, same_rows = fit("memory-rl", exploit=0, explore=0, kl=0.1)
    assert same(plain, zero) and [r.numbers for r in rows] == [r.numbers for r in same_rows]
    assert plain.policy.meter.flops == zero.policy.meter.flops
    recalled, _ = fit("memory-rl", explore=0, kl=0.1)
    assert not same(plain, recalled) and recalled.policy.meter.scored_tokens > plain.policy.meter.scored_tokens


def test_accuracy_never_contains_what_is_recalled() -> None:
    _, rows = fit("memory-rl", after=1, exploit=0.5)
    for row in rows:
        numbers = row.numbers
        assert numbers["accuracy"] in (0.0, 1.0) and numbers["reward/accuracy"] == numbers["accuracy"]
        assert 0 <= numbers["reward/exploit"] <= 0.5 and 0 <= numbers["reward/explore"] <= 1
        assert numbers["reward"] == pytest.approx(
            sum(numbers[f"reward/{p}"] for p in ("accuracy", "exploit", "explore"))
        )
    assert any(row.numbers["reward/exploit"] for row in rows)


def test_groups_without_a_right_answer_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every group is all right or all wrong: grpo has no advantage at all."""

    def verify(self: Task, problem: Problem, response: Response) -> Verdict:
        return Verdict(float(problem.data["n"] % 2), "ok")

    monkeypatch.setattr(type(get_task("parity")), "verify", verify)
    more = {"batch": 6, "group": 3, "temperature": 1.5}
    assert not any(r.numbers["advantage"] for r in fit("grpo", **more)[1])
    groups = groups_of(fit("memory-rl", explore=0, **more)[1])
    wrong = [g for g in groups if not g[0].numbers["accuracy"]]
    assert wrong and any(r.numbers["advantage"] for g in wrong for r in g)


def test_it_looks_with_the_first_policy() -> None:
    found, _ = fit("memory-rl", lr=1e-2)
    recall = found.stages[0].reward.children[1]  # type: ignore[union-attr]
    assert isinstance(recall, Recall) and isinstance(recall.encode, MeanHidden)
    kept, start = recall.encode.policy.model.state_dict(), trained_policy().model.state_dict()
    assert all(torch.equal(kept[n], start[n]) for n in start)
    assert not all(torch.equal(p, start[n]) for n, p in found.policy.model.state_dict().items())


@pytest.mark.parametrize("encoder", ["policy", "ngrams"])
def test_it_resumes(encoder: str, tmp_path: Path) -> None:
    """The memories and windows are where they were, and so is the encoder."""
    settings = {**QUICK, **SMALL, "model": trained_folder(), "after": 2, "encoder": encoder, "window": 9}
    run("memory-rl", out=tmp_path / "whole", **settings)
    count = iter(range(1, 9))
    run("memory-rl", out=tmp_path / "halted", stop=lambda: next(count) >= 2, **settings)
    resume(tmp_path / "halted")
    lines = [(tmp_path / n / "metrics.jsonl").read_text().splitlines() for n in ("whole", "halted")]
    whole, halted = ([{k: v for k, v in json.loads(x).items() if "seconds" not in k} for x in f] for f in lines)
    assert whole == halted and any(row.get("reward/explore") for row in whole)
    weights = [load_file(tmp_path / n / "model" / "model.safetensors") for n in ("whole", "halted")]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])


def test_another_reward_may_be_given() -> None:
    (stage,) = get_recipe("memory-rl")(reward=each("mine", lambda a: 1.0), explore=0.5).stages
    assert stage.reward and [type(c).__name__ for c in stage.reward.children] == ["_Each", "Recall"]
    with pytest.raises(WhetError, match="neighbours must be at least 1"):
        get_recipe("memory-rl")(neighbours=0)
    with pytest.raises(WhetError, match="encoder 'no-such-folder'"):
        (accuracy() + Recall(encoder="no-such-folder")).bind(trained_policy())
