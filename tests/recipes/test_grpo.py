"""grpo and its presets: the card's table of switches, and what each of them does in the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trained import trained_policy
from whet.advantages.estimators import GroupBaseline, ReinforcePlusPlus
from whet.errors import WhetError
from whet.models.policy import Policy
from whet.objectives.divergence import KLToReference
from whet.objectives.policy_gradient import CLIPS, PolicyGradient
from whet.recipes.recipe import get_recipe
from whet.records import Row
from whet.rewards import each
from whet.runs import RunFolder
from whet.sources import DropDead
from whet.tasks import get_task
from whet.training.fit import Fit, Options
from whet.training.learner import Learner
from whet.training.stage import Stage, Update
from whet.weights import Weights

SMALL = {"steps": 2, "batch": 4, "group": 4}


def stage_of(name: str, **arguments: Any) -> Stage:
    (stage,) = get_recipe(name)(**arguments).stages
    return stage


def run(stage: Stage, policy: Policy | None = None, **options: Any) -> Fit:
    fit = Fit(policy or trained_policy(), [stage], get_task("parity"), options=Options(**options))
    fit.run()
    return fit


def rows_of(name: str, **arguments: Any) -> list[Row]:
    """The rows that the last step learnt from."""
    stage = stage_of(name, **{**SMALL, "steps": 1, **arguments})
    learnt: list[Row] = []
    stage.transforms = [*stage.transforms, learnt.extend]
    run(stage)
    return learnt


# -- the card's table ------------------------------------------------------------------------------------------------
# preset: baseline, ratio, clip (of the objective, in force), normaliser, minibatches, dynamic, truncated answers filtered
TABLE = {
    "grpo": ("group", "token", (0.2, 0.2), "sequence", 1, False, False),
    "dapo": ("group", "token", (0.2, 0.28), "token", 1, True, True),
    "dr-grpo": ("none", "token", (0.2, 0.2), "constant", 1, False, False),
    "gspo": ("group", "sequence", (3e-4, 4e-4), "sequence", 4, False, False),
    "rloo": ("leave-one-out", "none", None, "sequence-sum", 1, False, False),
    "cispo": ("group", "cispo", None, "token", 1, False, False),
    "reinforce++": (None, "token", (0.2, 0.2), "token", 1, False, False),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_is_its_row_of_the_table(name: str) -> None:
    baseline, ratio, clip, normalise, minibatches, dynamic, filtered = TABLE[name]
    stage = stage_of(name)
    ((weight, term),) = stage.updates[0].loss.terms  # no KL in any of them
    assert isinstance(term, PolicyGradient) and weight == 1.0
    assert (term.ratio, term.clip or CLIPS.get(ratio), term.normalise) == (ratio, clip, normalise)
    assert (term.cap, term.floor, term.dual_clip, term.correction) == (None, None, None, "none")
    if baseline is None:
        assert isinstance(stage.advantage, ReinforcePlusPlus) and stage.collect.group == 1
    else:
        assert isinstance(stage.advantage, GroupBaseline) and stage.advantage.scale == baseline
    assert (stage.updates[0].epochs, stage.updates[0].minibatches) == (1, minibatches)
    assert (isinstance(stage.gate, DropDead), stage.gate.refill, stage.gate.max_draws) == (dynamic, dynamic, 10)
    assert len(stage.transforms) == filtered
    assert stage.wants() == ({"old_logprob"} if minibatches > 1 else set()), "one update needs no second forward"
    assert stage.collect.temperature == 1.0


def test_a_presets_settings_may_still_be_given() -> None:
    stage = stage_of("dapo", clip=[0.1, 0.3], dynamic="false", kl=0.1, kl_estimator="k2")
    (_, policy), (weight, kl) = stage.updates[0].loss.terms
    assert policy.clip == (0.1, 0.3) and not stage.gate.refill and policy.normalise == "token"  # type: ignore[attr-defined]
    assert isinstance(kl, KLToReference) and weight == 0.1 and kl.estimator == "k2"
    assert get_recipe("dapo").arguments["normalise"].default == "token"
    assert get_recipe("gspo").arguments["minibatches"].default == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"group": 1}, "a group of one has no baseline"), ({"advantage": "group-sdt"}, "did you mean 'group-std'"),
     ({"ratio": "tokn"}, "did you mean 'token'"), ({"clip": [0.2]}, r"clip is \[low, high\]"),
     ({"ratio": "none", "clip": [0.2, 0.2]}, "do nothing with ratio=none"), ({"group": 0}, "at least 1"),
     ({"dynamic": True, "group": 1, "advantage": "raw"}, "dynamic sampling would drop everything"),
     ({"kl": 0.1, "kl_estimator": "k4"}, "unknown|k4")],
)  # fmt: skip
def test_what_cannot_work_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(WhetError, match=message):
        get_recipe("grpo")(**arguments).check(get_task("parity"))
    get_recipe("reinforce++")().check(get_task("parity"))  # a group of one is right here


# -- in the loop -----------------------------------------------------------------------------------------------------
def test_a_dead_batch_is_a_counted_skip(tmp_path: Path) -> None:
    stage = stage_of("grpo", **SMALL, reward=each("same", lambda attempt: 0.3))
    policy = trained_policy()
    before = {n: p.clone() for n, p in policy.model.named_parameters()}
    fit = Fit(policy, [stage], get_task("parity"), folder=RunFolder(tmp_path))
    fit.run()
    assert all(torch.equal(before[n], p) for n, p in policy.model.named_parameters())
    assert [line.get("skipped") for line in RunFolder(tmp_path).read_metrics()] == [1.0, 1.0]
    assert policy.meter.optimizer_steps == 0 and fit.learners[0].taken == 0


def test_dynamic_sampling_admits_by_accuracy_and_not_by_the_shaped_reward() -> None:
    """The reward differs within every group; only those of mixed accuracy may be learnt from."""
    reward = each("shaped", lambda attempt: attempt.row["response"].rollout_id if attempt.row else 0.0)
    rows = rows_of("dapo", reward=reward, group=6)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group_id, []).append(row)
    assert len(groups) == 4 and len(rows) == 24
    for group in groups.values():
        assert 0 < sum(r.numbers["accuracy"] for r in group) < 6
        assert sorted(r.numbers["reward"] for r in group) == [0, 1, 2, 3, 4, 5]
    everyone = rows_of("grpo", reward=reward, group=6, batch=12)
    right = [sum(r.numbers["accuracy"] for r in everyone[i : i + 6]) for i in range(0, 72, 6)]
    assert any(n in (0, 6) for n in right), "grpo itself learns from all groups"


def test_truncated_answers_count_in_the_baseline_but_are_not_learnt() -> None:
    rows = rows_of("grpo", filter_truncated=True, max_new_tokens=5, group=6, batch=6, temperature=1.5)
    cut = [r for r in rows if not r["response"].ended]
    assert cut and all(r["response"].count_learnt() == 0 for r in cut)
    kept = rows_of("grpo", max_new_tokens=5, group=6, batch=6, temperature=1.5)
    assert [r.numbers["advantage"] for r in rows] == [r.numbers["advantage"] for r in kept]
    assert all(r["response"].count_learnt() for r in kept)


def test_long_answers_are_punished_towards_the_budgets_end() -> None:
    rows = rows_of("grpo", overlong_buffer=6, max_new_tokens=10)
    for row in rows:
        length = row.numbers["tokens"]
        assert row.numbers["reward/overlong"] == pytest.approx(min(0.0, (4 - length) / 6))
        assert row.numbers["reward"] == pytest.approx(row.numbers["accuracy"] + row.numbers["reward/overlong"])


def gradients(rows: list[Row], *updates: Update) -> list[torch.Tensor]:
    """The gradients of objectives on the same recorded rows, in fp64."""
    policy = trained_policy("gpt2", "tags", dtype=torch.float64)
    weights = Weights()
    weights.attach(policy, 0)
    found = []
    for update in updates:
        learner = Learner(update, {"policy": policy}, weights, steps=1, token_budget=500, budget=14)
        learner.accumulate(rows, 0)
        found.append(torch.cat([p.grad.flatten() for p in learner.parameters.values() if p.grad is not None]))
    return found


def test_on_one_on_policy_step_the_ratios_agree() -> None:
    """GSPO equals GRPO, and CISPO equals no clip at all (cards 3 and 6)."""
    rows = rows_of("grpo", group=6)
    assert any(r.numbers["advantage"] for r in rows)
    names = ("token", "sequence", "none", "cispo")
    token, *others = gradients(rows, *(Update(PolicyGradient(ratio=r, normalise="sequence")) for r in names))
    for other in others:
        assert float((token - other).norm() / token.norm()) < 1e-10


def test_dr_grpo_divides_by_the_budget() -> None:
    """sum_i A_i sum_t grad log p / (answers x budget): a constant times the sum, whatever the lengths."""
    rows = rows_of("dr-grpo", group=6)
    for row in rows:
        mean = sum(r.numbers["reward"] for r in rows if r.group_id == row.group_id) / 6
        assert row.numbers["advantage"] == pytest.approx(row.numbers["reward"] - mean)
    constant, plain = gradients(rows, stage_of("dr-grpo").updates[0], Update(PolicyGradient(normalise="none")))
    assert float((constant - plain / (len(rows) * 14)).norm() / constant.norm()) < 1e-10


def test_a_trl_reward_function_of_a_file_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def long(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n")
    rows = rows_of("grpo", reward=f"{file}:long")
    policy = trained_policy()
    for row in rows:
        assert row.numbers["reward"] == row.numbers["reward/long"] == len(policy.format.read(row["response"]).text)
        assert row.numbers["accuracy"] in (0.0, 1.0), "the verifier's verdict stands beside it"


@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "gspo", "rloo", "cispo", "reinforce++", "ppo"])
def test_the_reward_goes_up(name: str, tmp_path: Path) -> None:
    """The sign is right: what is rewarded (the answer 1, half of the answers at first) is given ever more often."""
    known = get_recipe(name).arguments
    reward = each("one", lambda attempt: float(attempt.response.answer == "1"))
    sizes = {"batch": 8, "group": 6} if known["group"].default > 1 else {"batch": 48}
    stage = stage_of(name, steps=16, lr=3e-3, warmup=0, reward=reward, **sizes)
    fit = Fit(trained_policy(), [stage], get_task("parity"), folder=RunFolder(tmp_path))
    fit.run()
    rewards = [line["reward"] for line in RunFolder(tmp_path).read_metrics()]
    assert rewards[0] < 0.7 and rewards[-1] > max(0.75, rewards[0] + 0.25)
