"""long-cot: what the recipe is made of, its limits (ppo, classic), the tokens that its penalty reaches, noise, the study."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trained import trained_folder, trained_policy
from whet.advantages.gae import GeneralizedAdvantage
from whet.arms import parse_arms
from whet.errors import WhetError
from whet.launch import run
from whet.recipes.recipe import get_recipe
from whet.records import Row
from whet.study import get_study
from whet.tasks import get_task
from whet.training.fit import Fit, Options
from whet.training.stage import Stage

SMALL: dict[str, Any] = {"steps": 1, "batch": 4, "group": 4, "sft_steps": 0}
QUICK: dict[str, Any] = {"test_n": 4, "validation_n": 4, "k": 0, "others": [], "eval_every": 0}


def stages(name: str = "long-cot", **arguments: Any) -> list[Stage]:
    given = SMALL if name == "long-cot" else {k: v for k, v in SMALL.items() if k != "sft_steps"}
    return get_recipe(name)(**{**given, **arguments}).stages


def learnt(stage: Stage) -> list[Row]:
    rows: list[Row] = []
    stage.transforms = [lambda found: rows.extend(found)]
    Fit(trained_policy(), [stage], get_task("parity"), options=Options(seed=2)).run()
    return rows


def test_what_it_is_made_of() -> None:
    supervised, ppo = stages(sft_steps=7, kl=0.02, scale=0.5, margin=3, max_new_tokens=11)
    assert (supervised.name, supervised.steps, ppo.name) == ("sft", 7, "long-cot")
    advantage = ppo.advantage
    assert isinstance(advantage, GeneralizedAdvantage)
    assert (advantage.gamma, advantage.lam, advantage.beta, advantage.whiten) == ((1.0, 0.99), 1.0, 0.01, True)
    (_, policy), (_, value) = ppo.updates[0].loss.terms
    assert policy.normalise == value.normalise == "sequence"  # type: ignore[attr-defined]
    (short,) = [s for s in stages(sft_steps=1, cot="short") if s.name == "sft"]
    assert short.collect.rationale is False  # type: ignore[attr-defined]
    assert supervised.collect.rationale is True  # type: ignore[attr-defined]


def test_6_without_penalty_and_with_flat_bends_it_is_ppo_with_lambda_1() -> None:
    """Bit for bit in the advantages: P = 0, (a, b) = (1, 1) and (0, 0), r_e = 0. The margin must not reach the answers."""
    ours = learnt(*stages(curve="classic", margin=0, repetition="none", kl=0.0, scale=1.0))
    theirs = learnt(*stages("ppo", lam=1.0, normalise="sequence"))
    for a, b in zip(ours, theirs, strict=True):
        assert a["response"].ids == b["response"].ids
        assert a.numbers["reward"] == (b.numbers["reward"] if a["response"].ended else 0.0)
        assert torch.equal(a["response"].per_token["advantage"], b["response"].per_token["advantage"])
    none = learnt(*stages(penalty=0.0))
    for a, b in zip(none, learnt(*stages(repetition="none")), strict=True):
        torch.testing.assert_close(a["response"].per_token["advantage"], b["response"].per_token["advantage"])


def test_the_penalty_stands_on_the_tokens_that_repeat_and_the_outcome_on_the_last() -> None:
    rows = learnt(*stages(ngram=1, scale=1.0, kl=0.0, max_new_tokens=14))
    hit = 0
    for row in rows:
        sample = row["response"]
        seen = set[int]()
        for token, dense in zip(torch.tensor(sample.ids)[sample.learn_mask].tolist(),
                                sample.per_token["reward"][sample.learn_mask].tolist(), strict=True):  # fmt: skip
            assert dense == pytest.approx(-0.05 if token in seen else 0.0)
            hit += token in seen
            seen.add(token)
        start = int(sample.learn_mask.nonzero()[0])
        total = float(sum(0.99**u * r for u, r in enumerate(sample.per_token["reward"][sample.learn_mask].tolist())))
        assert float(sample.per_token["return"][start]) == pytest.approx(row.numbers["reward"] + total, abs=1e-5)
    assert hit > 0


def test_the_outcome_knows_the_length() -> None:
    for row in learnt(*stages(repetition="none", scale=1.0, kl=0.0, margin=2)):
        right, n = row.numbers["accuracy"] == 1.0, row.numbers["tokens"]
        a, b = (2, 1) if right else (-10, 0)
        cosine = b + (a - b) / 2 * (1 + torch.cos(torch.tensor(torch.pi * n / 14)).item())
        assert row.numbers["reward"] == pytest.approx(-10 if n + 2 >= 14 else cosine, abs=1e-5)


def test_noise_is_a_view_of_the_task() -> None:
    done = run("long-cot", task="noisy:rate=0.5:rows=8|parity", model=trained_folder(), **SMALL, **QUICK)
    assert done.progress.finished
    with pytest.raises(WhetError, match="does not go by the gold answer"):
        room = trained_folder(max_position_embeddings=256)
        run("long-cot", task="noisy:rate=0.5|countdown:level=1", model=room, **SMALL, **QUICK)


def test_lengths_are_measured() -> None:
    done = run("long-cot", task="parity", model=trained_folder(), **SMALL, **QUICK)
    after = done.summary["after"]
    assert 0 < after["sampled_tokens"] <= 14 and 0 <= after["cut_off"] <= 1 and 0 <= after["repetition"] <= 1
    assert after["reflections"] == 0.0
    assert min(after.get("tokens_right", 0), after.get("tokens_wrong", 99)) <= after["sampled_tokens"]


def test_what_cannot_work_is_refused() -> None:
    for arguments, told in (({"curve": "cosin"}, "did you mean 'cosine'"), ({"cot": "both"}, "cot"),
                            ({"repetition": "words"}, "repetition"), ({"lam": 0.95}, "lam=1 alone"),
                            ({"reward": "a.py:f"}, "use ppo for another"), ({"ngram": 0}, "at least 1 token")):  # fmt: skip
        with pytest.raises(WhetError, match=told):
            get_recipe("long-cot")(**arguments)
    with pytest.raises(WhetError, match="margin of 14 leaves nothing of a budget of 14"):
        run("long-cot", task="parity", model=trained_folder(), margin=14, **SMALL, **QUICK)


def test_the_studys_arms_can_run() -> None:
    found = get_study("long-cot")
    for arm in parse_arms(found.arms):
        config = arm.config(found.task, 0, found.settings)
        get_recipe(config.recipe)(**config.arguments).check(get_task(found.task))
