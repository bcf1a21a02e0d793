"""Reference scores of given texts are computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trained import trained_policy
from whet.recipes.recipe import get_recipe
from whet.records import Row, Sample, Segment
from whet.runs import RunFolder
from whet.tasks import Problem, Task
from whet.training.fit import Fit, Options
from whet.training.references import References


class Given(Task):
    """Ten pairs of ragged lengths."""

    name = "given"

    def problems(self, split: str, n: int | None = None, *, seed: int = 0, start: int = 0) -> list[Problem]:  # type: ignore[override]
        rows = [Problem(f"given/{i}", f"parity {i}", chosen="it is " * (1 + i % 3), rejected="no") for i in range(10)]
        return rows[start : None if n is None else start + n]

    def provides(self) -> set[str]:
        return {"preferences"}


def fit(folder: Path, steps: int = 6, **options: Any) -> Fit:
    folder.mkdir(exist_ok=True)
    recipe = get_recipe("dpo")(pairs="given", steps=steps, batch=5, lr=3e-3, warmup=0)
    return Fit(trained_policy(), recipe.stages, Given(), options=Options(seed=4, **options), folder=RunFolder(folder))


def test_given_pairs_are_scored_in_the_first_epoch_only(tmp_path: Path) -> None:
    made = fit(tmp_path)  # three epochs
    made.run()
    assert len(made.step.references) == 20
    known: dict[str, int] = {}
    for _ in range(2):  # the texts themselves, once each
        for row in made.stages[0].collect.rows(made.stages[0].problems, 5, made.policy, made.scope):
            known |= {f"{row.problem_id}{name}": len(row[name]) for name in ("chosen", "rejected")}
    assert len(known) == 20 and made.policy.meter.scored_tokens == sum(known.values())


def test_a_resumed_run_has_the_same_scores_to_the_bit(tmp_path: Path) -> None:
    """Scored in another batch they would be rounded otherwise."""
    whole = fit(tmp_path / "whole")
    whole.run()
    fit(tmp_path / "halted", stop=lambda: True).run()
    fit(tmp_path / "halted", stop=lambda: True).run(resume=True)
    resumed = fit(tmp_path / "halted")
    resumed.run(resume=True)
    assert resumed.policy.meter.scored_tokens == whole.policy.meter.scored_tokens
    for (name, p), q in zip(whole.policy.named_parameters(), resumed.policy.model.parameters(), strict=True):
        assert torch.equal(p, q), name


def one(ids: list[int], learn: int, scored: bool = True, **more: Any) -> Row:
    sample = Sample([Segment("question", ids[:-learn]), Segment("answer", ids[-learn:], learn=True)], **more)
    if scored:
        sample.per_token["reference_logprob"] = -torch.arange(float(len(ids))) * sample.learn_mask
    return Row({"response": sample})


def test_a_score_is_that_of_the_text_and_of_what_is_learnt_of_it() -> None:
    kept = References()
    kept.read([one([1, 2, 3, 4], 2, False)])
    kept.keep([one([1, 2, 3, 4], 2), one([1, 2, 3], 1), one([1, 2, 3, 4], 1, settings={"temperature": 1.0})])
    assert len(kept) == 2, "what was sampled is not kept"
    again = References()
    again.load_state_dict(kept.state_dict())
    for held in (kept, again):
        rows = [one(ids, learn, False) for ids, learn in (([1, 2, 3, 4], 2), ([1, 2, 3, 4], 1), ([1, 2, 3, 5], 2))]
        held.read(rows)
        first, *others = (row["response"].per_token for row in rows)
        assert first["reference_logprob"].tolist() == [0, 0, -2, -3]
        assert not any(others)
    empty = References()
    empty.load_state_dict(References().state_dict())
    assert len(empty) == 0
