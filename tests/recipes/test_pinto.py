"""PINTO's card: its tests by number (1 and 2 are in objectives/test_choices.py)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import tiny_policy
from trained import trained_folder, trained_policy
from whet.errors import WhetError
from whet.launch import run
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.objectives import Context
from whet.objectives.choices import ChoiceLoss, score_choices
from whet.recipes.recipe import get_recipe
from whet.recipes.supervised.pinto import Spoilt
from whet.records import Row, Sample, Segment
from whet.sampling.sampler import SamplingSettings
from whet.sources import ByScore, Choices, Justify, Scope, Uniform
from whet.sources.choices import listing, plain_words, shuffled
from whet.tasks import Problem, get_task
from whet.training.fit import Fit, Options
from whet.training.learner import Learner
from whet.training.stage import Update
from whet.weights import Weights

FP64: dict[str, Any] = {"dtype": torch.float64}
QUICK: dict[str, Any] = {"test_n": 6, "validation_n": 4, "k": 2, "others": [], "eval_every": 0}


def rows(policy: Policy, n: int = 4, task: str = "clues", listed: bool = False, source: str = "task") -> list[Row]:
    problems = Uniform()
    problems.bind(get_task(task), 3)
    return Choices(Justify(source, listed)).rows(problems, n, policy, Scope(get_task(task), 0))


def gradients(objective: Any, given: list[Row]) -> dict[str, torch.Tensor]:
    policy, weights = tiny_policy(style="tags", **FP64, max_position_embeddings=512), Weights()
    weights.attach(policy, 0)
    learner = Learner(Update(objective), {"policy": policy}, weights, steps=1, token_budget=100_000)
    learner.accumulate(given, 5)
    return {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], times: float = 1.0) -> None:
    assert a.keys() == b.keys() and a
    for name in a:
        torch.testing.assert_close(times * a[name], b[name], rtol=1e-5, atol=1e-6)  # norms work in fp32


@pytest.fixture
def policy() -> Policy:
    return tiny_policy(style="tags", **FP64, max_position_embeddings=512)


# -- 3 ---------------------------------------------------------------------------------------------------------------
def test_3_weight_0_is_plain_training_and_no_corruption_is_the_standard_loss(policy: Policy) -> None:
    given = rows(policy)
    (stage,) = get_recipe("pinto")(weight=0).stages
    assert [t.name for _, t in stage.updates[0].loss.terms] == ["choices"]
    plain = gradients(ChoiceLoss(), given)
    same(plain, gradients(stage.updates[0].loss, given))
    unspoilt = ChoiceLoss(Spoilt(mask=0.0, replace_ratio=0.0), name="spoilt")
    ctx = Context(given, {"policy": policy})
    assert float(unspoilt.total(ctx)) == pytest.approx(float(ChoiceLoss().total(ctx)), rel=1e-10)
    same(plain, gradients(ChoiceLoss() + unspoilt, given), times=2.0)


def test_both_terms_train_and_smoothing_stays_in_its_own(policy: Policy) -> None:
    (stage,) = get_recipe("pinto")().stages
    (one, standard), (weight, spoilt) = stage.updates[0].loss.terms
    assert (one, weight, standard.smoothing, spoilt.smoothing) == (1.0, 1.0, 0.0, 0.1)  # type: ignore[attr-defined]
    given = rows(policy)
    whole = gradients(stage.updates[0].loss, given)
    parts = [gradients(term, given) for term in (standard, spoilt)]
    same({n: parts[0][n] + parts[1][n] for n in whole}, whole)


# -- 4 ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_4_a_hidden_rationale_is_no_rationale_whatever_its_length(kind: str) -> None:
    policy = tiny_policy(kind, **FP64)

    def asked(rationale: list[int]) -> list[Sample]:
        return [Sample([Segment("question", list(range(9, 17))), Segment("rationale", rationale),
                        Segment("prefix", [40, 41]), Segment("answer", list(words), learn=True)], "p", "p", i)
                for i, words in enumerate(([60, 61], [70, 71, 72]))]  # fmt: skip

    hide = Spoilt(mask=1.0, mask_ratio=1.0)
    found = [
        score_choices(policy, [asked(r)], view=hide)[0] for r in ([90, 91, 92], [150, 151, 152], list(range(100, 120)))
    ]
    none = score_choices(policy, [asked([])])[0]
    for scores in found:
        torch.testing.assert_close(scores, none, rtol=1e-9, atol=1e-11)
    shown = [score_choices(policy, [asked(r)])[0] for r in ([90, 91, 92], [150, 151, 152])]
    assert not torch.allclose(shown[0], shown[1])


# -- 5 ---------------------------------------------------------------------------------------------------------------
def test_5_replacement_changes_at_most_three_of_ten_tokens_and_no_question(policy: Policy) -> None:
    sample = Sample(
        [Segment("question", [5] * 8), Segment("rationale", [6] * 10), Segment("answer", [7], learn=True)], "p"
    )
    batch = Batch.of([sample])
    seen = [Spoilt(mask=0.0).see(policy, batch, seed) for seed in range(60)]
    changed = [(s.ids != batch.ids)[0] for s in seen]
    assert max(int(c.sum()) for c in changed) == 3
    assert not any(bool(c[:8].any()) or bool(c[18:].any()) for c in changed)
    assert len({tuple(s.ids[0].tolist()) for s in seen}) > 50  # drawn anew for each visit
    again = Spoilt(mask=0.0).see(policy, batch, 7)
    assert torch.equal(again.ids, seen[7].ids)


def test_the_coin_is_tossed_for_each_choice_and_visit(policy: Policy) -> None:
    batch = Batch.of(rows(policy, 1)[0].get("choices"))
    seen = [Spoilt(mask=0.5).see(policy, batch, seed).mask for seed in range(200)]
    hidden = torch.stack([(batch.mask & ~(batch.mask if m is None else m)).any(1) for m in seen])
    share = hidden.double().mean(0)
    assert ((share > 0.35) & (share < 0.65)).all()
    assert len({tuple(h.tolist()) for h in hidden}) == 8


# -- 6 ---------------------------------------------------------------------------------------------------------------
def test_6_permuting_choices_permutes_the_scores(policy: Policy) -> None:
    problem = get_task("clues").problems("train", 1)[0]
    order = [2, 0, 1]
    moved = replace(problem, choices=tuple(problem.choices[i] for i in order),
                    choice_rationales=tuple(problem.choice_rationales[i] for i in order))  # fmt: skip
    justify = Justify(listed=False)
    ours, theirs = (
        score_choices(policy, [justify.samples(policy, p, p.choice_rationales)])[0] for p in (problem, moved)
    )
    torch.testing.assert_close(ours[order], theirs, rtol=1e-10, atol=1e-12)
    listed = Justify(listed=True)
    told = score_choices(policy, [listed.samples(policy, moved, moved.choice_rationales)])[0]
    assert not torch.allclose(theirs, told)
    losses = []
    for p in (problem, moved):
        row = Row(
            {"choices": justify.samples(policy, p, p.choice_rationales)},
            {"gold": float(p.choices.index(p.answer or ""))},
        )
        losses.append([float(ChoiceLoss(smoothing=e).total(Context([row], {"policy": policy}))) for e in (0.0, 0.1)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


# -- 7 ---------------------------------------------------------------------------------------------------------------
def test_7_the_writer_is_not_told_the_answer_and_stays_as_it_is() -> None:
    task = get_task("parity")
    problem = task.problems("train", 1)[0]
    asked = [Justify("start").question(problem, choice).messages[0]["content"] for choice in problem.choices]
    assert asked == [f"{listing(problem)}\nWhy {choice}?" for choice in problem.choices]
    other = replace(problem, answer="1" if problem.answer == "0" else "0")
    assert asked == [Justify("start").question(other, choice).messages[0]["content"] for choice in other.choices]

    policy = trained_policy()
    made = get_recipe("pinto")(rationales="start", steps=2, batch=4)
    made.answering.bind(policy)
    writer: Any = made.answering.justify.teacher  # type: ignore[attr-defined]
    before = {n: p.clone() for n, p in writer.policy.named_parameters()}
    Fit(policy, made.stages, task, options=Options(seed=1)).run()
    assert all(torch.equal(p, before[n]) for n, p in writer.policy.named_parameters())
    assert any(not torch.equal(p, before[n]) for n, p in policy.named_parameters())
    assert policy.meter.sampled_tokens == 0  # what the writer costs is not the run's


# -- answering -------------------------------------------------------------------------------------------------------
def test_the_best_scored_choice_is_the_answer_and_temperature_draws_from_the_softmax(policy: Policy) -> None:
    problems = get_task("clues").problems("test", 5)
    by_score = ByScore(Justify())
    greedy = by_score.ask(policy, problems, SamplingSettings(8, temperature=0.0), 1, 0)
    scores = by_score.scores(policy, problems, [p.choice_rationales for p in problems])
    for problem, (sample,), own in zip(problems, greedy, scores, strict=True):
        response = by_score.read(policy, sample)
        assert response.answer == problem.choices[int(own.argmax())] and response.ended
        assert response.rationale == problem.choice_rationales[int(own.argmax())]
    drawn = by_score.ask(policy, problems[:1], SamplingSettings(8, temperature=1.0), 400, 0)[0]
    shares = [sum(by_score.read(policy, s).answer == c for s in drawn) / 400 for c in problems[0].choices]
    assert shares == pytest.approx(scores[0].softmax(0).tolist(), abs=0.1)


def test_sensitivity_is_0_without_rationales_and_measured_with_them(policy: Policy) -> None:
    task = get_task("clues")
    problems = task.problems("test", 6)
    none = ByScore(Justify("none"), hidden=Spoilt(mask=1.0)).measure(policy, task, problems)
    assert none["sensitivity"] == pytest.approx(0.0, abs=1e-12)
    assert none["trust_masked"] == pytest.approx(none["confidence"], rel=1e-9)
    found = ByScore(Justify(), hidden=Spoilt(mask=1.0)).measure(policy, task, problems)
    assert abs(found["sensitivity"]) > 1e-4 and 0 <= found["accuracy_masked"] <= 1
    assert shuffled([["a", "b"], ["c", "d", "e"]]) == [["c", "d"], ["a", "b", "a"]]
    assert plain_words("<think>b so</think><answer>c</answer>") == "b so"


def test_problems_without_choices_are_answered_as_ever() -> None:
    policy = trained_policy()
    problems = [replace(p, choices=()) for p in get_task("parity").problems("test", 2)]
    assert len(ByScore(Justify()).ask(policy, problems, SamplingSettings(8, temperature=0.0), 1, 0)) == 2


# -- a user's file, adapters, refusals ---------------------------------------------------------------------------------
def my_file(folder: Path, **more: Any) -> str:
    path = folder / "my.jsonl"
    colours = ["red", "blue", "green"]
    made = [{"prompt": f"Item {n}: which colour?", "choices": colours, "answer": colours[n % 3],
             "choice_rationales": [f"{n} says {c}" for c in colours], **more} for n in range(60)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


@pytest.mark.parametrize("weights", ["full", "lora:rank=4"])
def test_it_learns_a_file_of_choices(weights: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run("pinto", task=my_file(tmp_path), model=trained_folder(style="plain"), weights=weights, out=out, steps=3,
               batch=4, list_choices=False, **QUICK)  # fmt: skip
    measured = done.summary["after"]
    assert {"sensitivity", "confidence", "trust_masked", "accuracy_masked"} <= set(measured)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(
        {"loss/choices", "loss/spoilt", "choices/accuracy"} <= set(line) for line in lines if "loss/choices" in line
    )
    assert done.summary["compute"]["sampled_tokens"] == 0


def test_what_cannot_work_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        WhetError, match=r"needs choice rationales and task .* has none: provide rows with `choice_rationales`"
    ):
        get_recipe("pinto")().check(get_task(my_file(tmp_path, choice_rationales=None)))
    get_recipe("pinto")(rationales="start").check(get_task(my_file(tmp_path, choice_rationales=None)))
    with pytest.raises(WhetError, match="needs choice rationales and task 'chain-sum'"):
        get_recipe("pinto")().check(get_task("chain-sum"))
    with pytest.raises(WhetError, match="nothing to spoil; set weight=0"):
        get_recipe("pinto")(rationales="none")
    with pytest.raises(WhetError, match="mask is a share"):
        get_recipe("pinto")(mask=1.5)
    with pytest.raises(WhetError, match="teacher 'modle' is not known"):
        get_recipe("pinto")(rationales="modle")
    with pytest.raises(WhetError, match="a list of one text for each of the 3 choices, not 2 texts"):
        get_task(my_file(tmp_path, choice_rationales=["a", "b"]))
    small = tiny_policy(max_position_embeddings=64)
    with pytest.raises(WhetError, match=r"question, rationale and choice have .* tokens and the model takes 64"):
        rows(small, 1)
    problem = Problem("x", "q", "c", choices=("a", "b"), choice_rationales=("r", "s"))

    class One(Uniform):
        def draw(self, n: int) -> list[Problem]:
            return [problem]

    with pytest.raises(WhetError, match="the answer 'c' is none of the choices"):
        Choices(Justify()).rows(One(), 1, tiny_policy(), Scope(get_task("parity"), 0))
