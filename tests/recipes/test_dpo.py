"""dpo: pairs, the reference, and settings that belong to a loss."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from trained import trained_policy
from whet.errors import WhetError
from whet.models.policy import Policy
from whet.objectives.preference import Preference
from whet.recipes.recipe import get_recipe
from whet.records import Row
from whet.runs import RunFolder
from whet.sources import Pairs, Preferences
from whet.tasks import Problem, Task, get_task
from whet.training.fit import Fit, Options
from whet.training.stage import Stage
from whet.weights import Lora, Weights

SMALL: dict[str, Any] = {"steps": 4, "batch": 4, "problems": 24, "samples": 4, "lr": 3e-3, "warmup": 0}


def stage_of(**arguments: Any) -> Stage:
    (stage,) = get_recipe("dpo")(**{**SMALL, **arguments}).stages
    return stage


def fit_of(stage: Stage, policy: Policy | None = None, weights: Weights | None = None, out: Path | None = None,
           task: Task | None = None) -> Fit:  # fmt: skip
    fit = Fit(policy or trained_policy(), [stage], task or get_task("parity"), weights=weights, options=Options(seed=4),
              folder=RunFolder(out) if out else None)  # fmt: skip
    fit.run()
    return fit


def stored(stage: Stage) -> list[Row]:
    assert isinstance(stage.collect, Pairs)
    return stage.collect.stored


def live(policy: Policy, row: Row, role: str) -> torch.Tensor:
    """A response's token log-probs by a plain full forward."""
    sample = row[role]
    with torch.no_grad():
        logprobs = policy.logits(torch.tensor(sample.ids)[None])[0].log_softmax(-1)
    start = sample.prompt_length
    return logprobs[start - 1 : -1].gather(-1, torch.tensor(sample.ids)[start:, None])[:, 0]


# -- the reference -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("weights", [None, Lora(4)], ids=["full", "lora"])
def test_reference_scores_are_in_the_rows_and_are_those_of_the_start(weights: Weights | None) -> None:
    """Card test 6: cached equal live ones, and with adapters the reference is a copy of the base."""
    stage = stage_of()
    fit = fit_of(stage, weights=weights)
    base = trained_policy()
    scored = [row for row in stored(stage) if "reference_logprob" in row["chosen"].per_token]
    assert len(scored) >= 8
    for row in scored:
        for role in ("chosen", "rejected"):
            sample = row[role]
            held = sample.per_token["reference_logprob"]
            assert torch.allclose(held[sample.learn_mask], live(base, row, role), atol=1e-5)
            assert not bool(held[~sample.learn_mask].any())
    reference = fit.policies["reference"]
    assert (reference is fit.policy) == (weights is not None), "adapters off, and no second model"
    probe = torch.arange(2, 30)[None]
    with torch.no_grad():
        if weights is not None:
            with fit.policy.adapters_off():
                assert torch.equal(fit.policy.logits(probe), base.logits(probe))
        else:
            assert torch.equal(reference.logits(probe), base.logits(probe))
        assert not torch.equal(fit.policy.logits(probe), base.logits(probe))


@pytest.mark.parametrize("loss", ["sigmoid", "cdpo", "robust", "sigmoid_norm"])
def test_a_policy_that_is_the_reference_has_a_loss_of_log_two(loss: str, tmp_path: Path) -> None:
    """Card test 3, in the loop: the first step's."""
    fit_of(stage_of(loss=loss), out=tmp_path)
    first = next(line for line in RunFolder(tmp_path).read_metrics() if "loss/dpo" in line)
    assert first["loss/dpo"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["margin"] == pytest.approx(0.0, abs=1e-5) and first["grad_norm"] > 0


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "simpo", "orpo"])
def test_the_margin_grows(loss: str, tmp_path: Path) -> None:
    """The sign is right: chosen answers gain on rejected ones."""
    fit_of(stage_of(loss=loss, steps=12, batch=8), out=tmp_path)
    margins = [line["margin"] for line in RunFolder(tmp_path).read_metrics() if "margin" in line]
    assert margins[-1] > margins[0] + 0.01
    assert stage_of(loss=loss).wants() == (set() if loss in ("simpo", "orpo") else {"reference_logprob"})


# -- pairs -------------------------------------------------------------------------------------------------------------
def test_sampled_pairs_are_a_right_and_a_wrong_answer_of_the_start(tmp_path: Path) -> None:
    stage = stage_of(cap=1)
    fit = fit_of(stage, out=tmp_path)
    rows, task = stored(stage), get_task("parity")
    assert len({r.problem_id for r in rows}) == len(rows)
    for row in rows:
        chosen, rejected = (fit.policy.format.read(row[role]).answer for role in ("chosen", "rejected"))
        split, seed, index = (row.problem_id.split("/")[i] for i in (2, 3, 5))
        (problem,) = task.problems(split, 1, seed=int(seed), start=int(index))  # type: ignore[arg-type]
        assert chosen == problem.answer != rejected
        assert row["chosen"].segments[0].ids == row["rejected"].segments[0].ids
    first = RunFolder(tmp_path).read_metrics()[0]
    assert first["collected/problems"] == 24 and first["collected/pairs"] == len(rows) and first["step"] == 0


class Given(Task):
    """A preference file."""

    name = "given"

    def problems(self, split: str, n: int | None = None, *, seed: int = 0, start: int = 0) -> list[Problem]:  # type: ignore[override]
        rows = [Problem(f"given/{i}", f"parity {i}", chosen=f"it is {i % 2}", rejected="no idea") for i in range(10)]
        return rows[start : None if n is None else start + n]

    def provides(self) -> set[str]:
        return {"preferences"}


def test_given_pairs_are_learnt_as_they_stand(tmp_path: Path) -> None:
    recipe = get_recipe("dpo")(**{**SMALL, "steps": 10}, pairs="given")
    recipe.check(Given())
    with pytest.raises(WhetError, match="needs preferences and task 'parity' has none: provide rows with `chosen`"):
        recipe.check(get_task("parity"))
    (stage,) = recipe.stages
    assert isinstance(stage.collect, Preferences)
    fit_of(stage, out=tmp_path, task=Given())
    lines = RunFolder(tmp_path).read_metrics()
    assert lines[0]["loss/dpo"] == pytest.approx(math.log(2), abs=1e-5) and lines[-1]["loss/dpo"] < 0.5
    assert lines[-1]["pair_accuracy"] == 1.0


def test_a_preference_file_is_a_task(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q {i}", "chosen": f"yes {i}", "rejected": "no"} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = get_task(str(file))
    get_recipe("dpo")(pairs="given").check(task)
    with pytest.raises(WhetError, match="needs verifier"):
        get_recipe("dpo")().check(task)


# -- settings ----------------------------------------------------------------------------------------------------------
def term(**arguments: Any) -> Preference:
    found = stage_of(**arguments).updates[0].loss.terms[0][1]
    assert isinstance(found, Preference)
    return found


def test_each_loss_has_its_own_settings_and_defaults() -> None:
    assert term().settings == {"beta": 0.1} and term().scores == "sum"
    assert term(loss="simpo").settings == {"beta": 2.0, "gamma": 1.0} and term(loss="simpo").scores == "mean"
    assert term(loss="ipo", tau="0.2", scores="sum").settings == {"tau": 0.2}
    assert term(loss="ipo", scores="sum").scores == "sum"
    assert term(loss="dpop").settings == {"beta": 0.1, "lam": 50.0} and term(loss="orpo").settings == {"lam": 0.1}
    assert term(loss="cdpo", smoothing=0).settings == {"beta": 0.1, "smoothing": 0}, "0 is a value, and is DPO"
    assert term(loss="robust", flip=0.0, beta=0.3).settings == {"beta": 0.3, "flip": 0.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"tau": 0.2}, "unknown setting of the preference loss 'sigmoid' 'tau'"), ({"loss": "ipo", "beta": 0.1}, "'beta'"),
     ({"loss": "sigmiod"}, "did you mean 'sigmoid'"), ({"pairs": "sampeld"}, "sampled or given, not 'sampeld'"),
     ({"loss": "robust", "flip": 0.5}, "0 <= flip < 0.5"), ({"scores": "max"}, "a sum or a mean, not 'max'")],
)  # fmt: skip
def test_nothing_is_silently_ignored(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(WhetError, match=message):
        stage_of(**arguments)


def test_the_likelihood_of_the_chosen_answer_may_be_added(tmp_path: Path) -> None:
    stage = stage_of(sft=0.5)
    (one, preference), (weight, likelihood) = stage.updates[0].loss.terms
    assert (one, preference.name, weight, likelihood.name, likelihood.roles) == (1.0, "dpo", 0.5, "sft", ("chosen",))
    assert stage.updates[0].loss.describe() == "1 dpo [row] + 0.5 sft [token]"
    fit_of(stage, out=tmp_path)
    assert all(line["loss/sft"] > 0 for line in RunFolder(tmp_path).read_metrics() if "loss/dpo" in line)
