"""The two-stage card: its six tests, by number; the hand-over of weights and moments; what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trained import trained_folder, trained_policy
from whet.errors import WhetError
from whet.launch import resume, run
from whet.models.policy import Policy
from whet.objectives import nll
from whet.recipes.recipe import get_recipe
from whet.recipes.reinforced.two_stage import COSINE, shaped
from whet.records import Row
from whet.rewards import Attempt, Reward, accuracy, boxed_in_thought, total
from whet.rewards.reward import NAN
from whet.sources import Curated, Demonstrations, Scope, Uniform
from whet.sources.curation import Difficulty
from whet.tasks import Problem, Response, Verdict, get_task
from whet.tasks.files import read_files
from whet.training.fit import Fit, Options
from whet.training.learner import Learner
from whet.training.optimizer import AdamW
from whet.training.stage import Stage, Update

SMALL: dict[str, Any] = {"rows": 12, "sft_epochs": 1, "sft_batch": 4, "steps": 2, "batch": 4, "group": 4}


def stages(**arguments: Any) -> list[Stage]:
    return get_recipe("two-stage")(**{**SMALL, **arguments}).stages


def attempt(length: int, value: float, text: str = "12", problem: str = "p", budget: int = 300) -> Attempt:
    status = "error" if value != value else "ok" if value == 1.0 else "wrong"
    return Attempt(Problem(problem, "?", "12"), Response(text, "12"), Verdict(value, status), length, False, budget)  # type: ignore[arg-type]


def part(name: str, reward: Reward, *group: Attempt) -> list[float]:
    return [parts[name] for parts in reward(group)]


# -- 1 ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("right", "values"), [(1.0, (1.0, 0.55, 0.1, 0.1)), (0.0, (-1.0, -0.55, -0.1, -0.1))])
def test_1_the_cosine(right: float, values: Sequence[float]) -> None:
    """At p = 0, 1/2, 1 and beyond."""
    assert [COSINE(right == 1.0, n, 30_000) for n in (0, 15_000, 30_000, 45_000)] == pytest.approx(values)
    paid = part("cosine", shaped(), attempt(150, right), attempt(300, right))
    assert paid == pytest.approx(values[1:3]), "M is the generation budget"
    text = "x" * 15_000
    assert part("cosine", shaped(unit="char", budget=30_000), attempt(3, right, text)) == pytest.approx(values[1:2])


# -- 2, 3 ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("lengths", "right", "values"),
    [
        ((100, 200, 300), (1, 1, 0), (0.5, 0.0, -0.5)),
        ((100, 200, 300), (0, 1, 1), (0.0, 0.0, -0.5)),
        ((200, 200, 200), (1, 0, 1), (0.0, 0.0, 0.0)),
    ],
)
def test_2_the_length_beside_the_others(lengths: Sequence[int], right: Sequence[int], values: Sequence[float]) -> None:
    group = [attempt(n, float(r)) for n, r in zip(lengths, right, strict=True)]
    assert part("relative_length", shaped(), *group) == pytest.approx(values)


def test_3_groups_do_not_mix() -> None:
    """The loop rewards each group by itself; what another one's lengths are changes nothing."""
    policy, stage = trained_policy(), stages(sft_epochs=0, temperature=1.5)[0]  # so hot that lengths differ
    rows = learnt_rows(stage, policy)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group_id, []).append(row)
    assert len(groups) == 4 and all(len(g) == 4 for g in groups.values())
    spread = [{r.numbers["tokens"] for r in g} for g in groups.values()]
    assert any(len(s) > 1 for s in spread), "answers of one length show nothing"
    for group in groups.values():
        tokens = [r.numbers["tokens"] for r in group]
        for row in group:
            low, high = min(tokens), max(tokens)
            share = 0.5 - (row.numbers["tokens"] - low) / (high - low) if high > low else 0.0
            share = share if row.numbers["accuracy"] == 1.0 else min(0.0, share)
            assert row.numbers["reward/relative_length"] == pytest.approx(share)


def learnt_rows(stage: Stage, policy: Policy) -> list[Row]:
    held: list[Row] = []
    stage.transforms, stage.steps = [held.extend], 1
    Fit(policy, [stage], get_task("parity"), options=Options(seed=2)).run()
    return held


# -- 4 ---------------------------------------------------------------------------------------------------------------
def test_4_the_form() -> None:
    before, behind = "<think>so \\boxed{12}</think>", "<think>so 12</think>\\boxed{12}"
    boxed = shaped("boxed")
    assert part("format", boxed, attempt(9, 1.0, before), attempt(9, 1.0, behind)) == [1.0, 0.0]
    assert part("format", boxed_in_thought(), attempt(9, 1.0, before)) == [1.0]
    assert part("format", shaped(), attempt(9, 1.0, "<answer>12</answer>"), attempt(9, 1.0, "12")) == [1.0, 0.0]
    with pytest.raises(WhetError, match="did you mean 'boxed'"):
        stages(form="box")


def test_the_parts_are_added_each_of_weight_one() -> None:
    group = [attempt(75, 1.0, "<answer>12</answer>"), attempt(300, 0.0)]
    first, second = shaped()(group)
    assert first == {"format": 1.0, "cosine": pytest.approx(COSINE(True, 75, 300)), "relative_length": 0.5}
    assert second == {"format": 0.0, "cosine": pytest.approx(-0.1), "relative_length": -0.5}
    lost = shaped()([*group, attempt(30, NAN)])[2]
    assert total(lost) != total(lost), "what could not be judged is left out, and not called right"


# -- 5 ---------------------------------------------------------------------------------------------------------------
def traces(tmp_path: Path) -> Any:
    """Two questions with several traces each, one of which has no correct one."""
    rows = []
    for question, gold, own in (("2+2?", "4", {50: "5", 80: "4", 120: "4"}), ("3+3?", "6", {30: "7", 40: "8"})):
        for words, answer in own.items():
            said = "so " * words + f"\nAnswer: {answer}"
            rows.append({"prompt": question, "completion": said, "answer": gold})
    train, held = tmp_path / "traces.jsonl", tmp_path / "held.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held.write_text(json.dumps({"prompt": "1+1?", "answer": "2"}) + "\n")
    return read_files(str(train), verifier="number", validation=str(held), test=str(held))


def test_5_the_shortest_correct_trace_of_each_problem(tmp_path: Path) -> None:
    task = traces(tmp_path)
    (stage, _) = stages(rows=6)
    assert isinstance(stage.collect, Curated)
    source = Uniform()
    source.bind(task, 0)
    policy = trained_policy("qwen3", "plain", max_position_embeddings=2048)
    stage.collect.prepare(source, policy, Scope(task, 0))
    texts = [policy.format.decode(row["response"].response) for row in stage.collect.stored]
    assert [text.count("so") for text in texts] == [80], "50 is wrong, 120 longer; the other question has none"
    counts = stage.collect.counts
    assert (counts["traces: dropped, wrong"], counts["traces: dropped, longer"], counts["traces: kept"]) == (3, 1, 1)


# -- 6 ---------------------------------------------------------------------------------------------------------------
def test_6_the_reference_is_the_checkpoint_of_stage_1(monkeypatch: pytest.MonkeyPatch) -> None:
    kls: list[float] = []
    step = Learner.step

    def spy(self: Learner, *args: Any) -> dict[str, float]:
        found = step(self, *args)
        kls.extend([found["kl"]] if "kl" in found else [])
        return found

    monkeypatch.setattr(Learner, "step", spy)
    policy = trained_policy()
    made = stages(lr=3e-3, steps=3)
    handed: list[dict[str, Tensor]] = []
    made[1].transforms = [lambda rows: handed.append(now(policy))]
    fit = Fit(policy, made, get_task("parity"), options=Options(seed=2))
    fit.run()
    reference = dict(fit.policies["reference"].model.named_parameters())
    assert kls[0] < 1e-6 < kls[1] and len(kls) == 3
    assert all(torch.equal(reference[n], handed[0][n]) for n in reference)
    assert any(not torch.equal(p, handed[0][n]) for n, p in trained_policy().model.named_parameters()), "no stage 1"


def now(policy: Policy) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in policy.model.named_parameters()}


# -- the recipe ------------------------------------------------------------------------------------------------------
def test_its_settings_are_the_papers() -> None:
    first, second = get_recipe("two-stage")().stages
    assert first.steps == 60 and first.batch == 64, "ten epochs of 384"
    update = second.updates[0]
    (_, policy), (kl, term) = update.loss.terms
    assert (second.steps, second.collect.group, kl, term.estimator, policy.clip) == (50, 8, 0.04, "k3", None)  # type: ignore[attr-defined]
    assert policy.normalise == term.normalise == "token"
    assert (update.optimizer.schedule, update.optimizer.rate(14_000_000_000)) == ("cosine", 4e-6)
    assert first.updates[0].optimizer.rate(14_000_000_000) == 1e-5 and not second.carry
    assert get_recipe("two-stage")(span=2).stages[0].updates[0].optimizer.span == 2
    hard = get_recipe("two-stage")(hard="[0.5,0.75]").stages[0].collect
    assert isinstance(hard, Curated) and Difficulty(0.5, 0.75) in hard.subsets[0].filters


def test_without_its_rewards_and_stage_1_it_is_grpo() -> None:
    (ours,) = stages(sft_epochs=0, reward=accuracy(), lr=1e-3)
    (theirs,) = get_recipe("grpo")(steps=2, batch=4, group=4, warmup=0, kl=0.04, normalise="token", lr=1e-3).stages
    theirs.updates[0].optimizer = AdamW(1e-3, schedule="cosine")
    after = []
    for stage in (ours, theirs):
        policy = trained_policy()
        Fit(policy, [stage], get_task("parity"), options=Options(seed=4)).run()
        after.append(now(policy))
    assert all(torch.equal(after[0][n], after[1][n]) for n in after[0])
    assert any(not torch.equal(p, after[0][n]) for n, p in trained_policy().model.named_parameters())


def test_settings_that_cannot_work_are_refused() -> None:
    for hard in ([0.5], [0.8, 0.2], [-1, 0.5]):
        with pytest.raises(WhetError, match="hard is"):
            stages(hard=hard)
    with pytest.raises(WhetError, match="name a budget"):
        stages(length_unit="char")
    with pytest.raises(WhetError, match="leave form, length_unit and length_budget away"):
        stages(reward=accuracy(), form="boxed")
    with pytest.raises(WhetError, match="'brevity' carries on the optimizers of the stage before, which has none"):
        Fit(trained_policy(), stages(sft_epochs=0, carry=True), get_task("parity"))


# -- the hand-over ---------------------------------------------------------------------------------------------------
def supervised(name: str, steps: int = 3, **more: Any) -> Stage:
    return Stage(Demonstrations(), [Update(nll(), optimizer=AdamW(lr=1e-3))], steps=steps, batch=4, name=name, **more)


def moments(fit: Fit) -> dict[int, dict[str, Tensor]]:
    return {i: {k: v.clone() for k, v in s.items()} for i, s in fit.learners[0].optimizer.state_dict()["state"].items()}


def test_carried_moments_make_two_stages_one_run() -> None:
    """At a constant rate, 3 + 3 steps are 6: with fresh moments they are not."""

    def after(made: list[Stage]) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
        policy = trained_policy()
        problems = Uniform(limit=24)
        for stage in made:
            stage.problems = problems
        fit = Fit(policy, made, get_task("parity"), options=Options(seed=1))
        fit.run()
        return now(policy), moments(fit)

    whole, held = after([supervised("whole", 6)])
    carried, own = after([supervised("one"), supervised("two", carry=True)])
    fresh, new = after([supervised("one"), supervised("two")])
    assert all(torch.equal(whole[n], carried[n]) for n in whole)
    assert any(not torch.equal(whole[n], fresh[n]) for n in whole)
    assert all(torch.equal(held[i][k], own[i][k]) for i in held for k in held[i])
    assert float(new[0]["step"]) == 3 and float(own[0]["step"]) == 6


def test_what_cannot_be_carried_is_refused() -> None:
    with pytest.raises(WhetError, match="'one' carries on the optimizers of the stage before, which has none"):
        Fit(trained_policy(), [supervised("one", carry=True)], get_task("parity"))
    with pytest.raises(WhetError, match="carries its optimizer on, but not its weights"):
        Fit(trained_policy(), [supervised("one"), supervised("two", carry=True, start="base")], get_task("parity"))
    reft = get_recipe("reft")(limit=8, warm=1, steps=1, batch=4).stages
    reft[1].carry = True
    with pytest.raises(WhetError, match="a value head came in, say"):
        Fit(trained_policy(), reft, get_task("parity")).run()


def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    """At the hand-over, and behind it."""
    settings = {"model": trained_folder(), "task": "parity", "test_n": 2, "validation_n": 2, "k": 0, "others": [],
                "eval_every": 0, **SMALL, "lr": 3e-3, "carry": True}  # fmt: skip
    whole = run("two-stage", out=tmp_path / "whole", **settings).policy.model.state_dict()
    for stop in (3, 4):
        left = iter(range(1, 9))
        run("two-stage", out=tmp_path / f"{stop}", stop=lambda left=left, stop=stop: next(left) == stop, **settings)
        found = resume(tmp_path / f"{stop}").policy.model.state_dict()
        assert all(torch.equal(whole[n], found[n]) for n in whole), stop
