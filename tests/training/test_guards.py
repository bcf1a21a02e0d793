"""Guards: each tells its one thing, once, and is silent where all is well."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trained import trained_folder
from whet.launch import resume, run
from whet.training import guards
from whet.training.guards import GUARDS, WINDOW, Guards, Past, rate, reward_alone
from whet.training.optimizer import AdamW

GOOD = {"reward": 0.5, "accuracy": 0.5, "entropy": 0.4, "dead_groups": 0.25, "ended": 0.9, "unparseable": 0.1,
        "mismatch": 1e-6}  # fmt: skip
BAD = {"dead_groups": 0.9, "entropy": 0.01, "truncated": 0.4, "unparseable": 0.6, "mismatch": 0.06}
KEY = {"truncated": "ended"}


def window(**changed: float) -> list[dict[str, float]]:
    return [{**GOOD, **changed}] * WINDOW


def noisy(reward: float, accuracy: float, scale: float = 0.02) -> list[dict[str, float]]:
    """A window whose steps scatter around two means."""
    return [{"reward": reward + scale * (-1) ** i, "accuracy": accuracy + scale * (-1) ** i} for i in range(WINDOW)]


@pytest.mark.parametrize("name", BAD)
def test_a_guard_tells_its_own_thing_alone(name: str) -> None:
    past = Past(window(), window(), window(**{KEY.get(name, name): BAD[name]}))
    assert [guard for guard, look in GUARDS.items() if look(past)] == [name]
    assert "\n" not in GUARDS[name](past)


def test_all_is_well_with_good_numbers_and_with_none() -> None:
    for now in (window(), [{}] * WINDOW, window(**dict.fromkeys(GOOD, math.nan))):
        past = Past(window(), window(), now)
        assert not any(look(past) for look in (*GUARDS.values(), reward_alone))


def test_entropy_collapses_against_the_stages_start_too() -> None:
    assert not guards.entropy(Past(window(entropy=1.0), [], window(entropy=0.11)))
    assert guards.entropy(Past(window(entropy=1.0), [], window(entropy=0.09)))


@pytest.mark.parametrize(
    ("now", "bad"),
    [((0.7, 0.40), True), ((0.7, 0.38), True), ((0.7, 0.45), False), ((0.51, 0.40), False), ((0.4, 0.3), False)],
    ids=["alone", "while accuracy falls", "both", "within the noise", "neither"],
)
def test_the_reward_rises_alone(now: tuple[float, float], bad: bool) -> None:
    then = noisy(0.5, 0.4)
    assert bool(reward_alone(Past(then, then, noisy(*now)))) == bad


def test_rise_by_hand() -> None:
    """Means 1 and 3, variances 1 and 4 of two values each: 2, sqrt(1/2 x 2 + 1/2 x 8)."""
    found = guards.rise([{"x": 0.0}, {"x": 2.0}], [{"x": 1.0}, {"x": 5.0}, {"x": math.nan}], "x")
    assert found == pytest.approx((2.0, math.sqrt(2 / 2 + 8 / 2)))
    assert math.isnan(guards.rise([{"x": 0.0}], [{"x": 1.0}], "x")[0])


@pytest.mark.parametrize(
    ("lr", "size", "adapters", "told"),
    [(1e-4, 2_600_000, False, ""), (3e-3, 2_600_000, False, "above"), (1e-7, 2_600_000, False, "below"),
     (1e-6, 7_000_000_000, False, ""), (1e-4, 7_000_000_000, False, "above"), (5e-5, 7_000_000_000, True, ""),
     (1e-4, 1_500_000_000, False, "above"), (1e-3, 7_000_000_000, True, "above")],
)  # fmt: skip
def test_rates_by_size(lr: float, size: int, adapters: bool, told: str) -> None:
    said = rate(lr, size, adapters)
    assert told in said and bool(said) == bool(told)
    assert not said or f"{size / 1e6:.3g} M" in said


def test_every_size_has_a_range_and_the_recipes_own_rates_are_in_it() -> None:
    from whet.recipes.recipe import get_recipe

    for name in ("grpo", "ppo", "dapo", "reft", "carft"):
        lr = get_recipe(name)().stages[-1].updates[0].optimizer
        for size in (500_000, 2_600_000, 600_000_000, 7_000_000_000, 70_000_000_000):
            assert not rate(lr.rate(size), size), (name, size)


# -- windows -----------------------------------------------------------------------------------------------------------
def entered(lr: float = 1e-4, reward: object = "some") -> Guards:
    watch = Guards()
    stage: Any = SimpleNamespace(reward=reward, updates=[SimpleNamespace(optimizer=AdamW(lr=lr))])
    policy: Any = SimpleNamespace(size=lambda: 2_600_000, peft=None)
    watch.enter(stage, policy)
    return watch


def test_each_is_told_once_and_only_over_a_whole_window() -> None:
    watch = entered()
    told = [watch.see({**GOOD, "entropy": 0.01, "ended": 0.1}) for _ in range(3 * WINDOW)]
    assert [i for i, texts in enumerate(told) if texts] == [WINDOW - 1]
    assert len(told[WINDOW - 1]) == 2


def test_a_rate_is_told_with_the_first_step_of_reinforcement() -> None:
    assert "lr 0.1" in entered(lr=0.1).see(GOOD)[0]
    assert entered(lr=0.1, reward=None).see({"loss/nll": 1.0}) == []


def test_the_reward_is_compared_with_the_best_accuracy_so_far() -> None:
    """They rise together first; then the reward alone, which a look at the first window would not show."""
    watch = entered()
    steps = [noisy(0.3, 0.2), noisy(0.8, 0.7), noisy(0.9, 0.65)]
    told = [watch.see(row) for part in steps for row in part]
    assert [i for i, texts in enumerate(told) if texts] == [3 * WINDOW - 1]
    assert "reward rises and the accuracy does not" in told[-1][0]


def test_windows_begin_anew_with_a_stage_and_what_was_told_stays_told() -> None:
    watch = entered(lr=0.1)
    for _ in range(WINDOW):
        watch.see({**GOOD, "ended": 0.1})
    assert len(watch.told) == 2
    again = entered(lr=0.1)
    again.load_state_dict(watch.state_dict())
    assert not any(again.see({**GOOD, "ended": 0.1}) for _ in range(WINDOW))


@pytest.mark.parametrize("stop", range(1, 2 * WINDOW, 3))
def test_a_resumed_watch_tells_what_the_other_tells(stop: int) -> None:
    rows = [*noisy(0.3, 0.2), *noisy(0.9, 0.1)]
    rows = [{**GOOD, **row, "entropy": 1.0 if i < WINDOW else 0.05} for i, row in enumerate(rows)]
    whole, first, second = entered(), entered(), entered()
    expected = [whole.see(row) for row in rows]
    found = [first.see(row) for row in rows[:stop]]
    second.load_state_dict(first.state_dict())
    assert found + [second.see(row) for row in rows[stop:]] == expected
    assert sum(map(len, expected)) == 2


def test_the_runs_record_has_it_once_however_often_it_is_resumed(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": trained_folder(), "task": "parity", "steps": 3, "batch": 2, "group": 4, "lr": 3e-3,
                                "test_n": 2, "k": 0, "others": [], "eval_every": 0}  # fmt: skip
    run("grpo", out=tmp_path / "whole", **settings)
    steps = iter(range(1, 9))
    run("grpo", out=tmp_path / "halted", stop=lambda: next(steps) >= 1, **settings)
    resume(tmp_path / "halted")
    for name in ("whole", "halted"):
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        told = [(row["step"], text) for row in rows for text in row.get("warnings", ())]
        assert [step for step, _ in told] == [1] and "lr 0.003 is above" in told[0][1]
