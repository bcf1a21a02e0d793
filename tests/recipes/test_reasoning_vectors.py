"""Reasoning vectors: the donors, the vector and its transfer within a run; and the study's criterion."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trained import trained_folder, trained_policy
from whet.arms import parse_arms
from whet.errors import WhetError
from whet.evaluation.matrix import evaluate
from whet.evaluation.scores import START, Cell, Scores
from whet.launch import Result, resume, run
from whet.recipes.recipe import Recipe, get_recipe
from whet.recipes.sparse.transfer import Transferred, between, transfer
from whet.sources import Demonstrations, Scope
from whet.study import get_study
from whet.tasks import get_task
from whet.training.fit import Fit
from whet.training.optimizer import Rate
from whet.training.options import Options
from whet.weights.controls import random_like, shuffled
from whet.weights.delta import WeightDelta, apply
from whet.weights.snapshot import Snapshots

SMALL: dict[str, Any] = {"recipient_rows": 12, "recipient_steps": 2, "sft_steps": 2, "sft_batch": 4, "sft_lr": 1e-2,
                         "steps": 2}  # fmt: skip
RL: dict[str, Any] = {"group": 4, "batch": 4, "lr": 1e-2}
STUDY = get_study("reasoning-vectors")


def made(**arguments: Any) -> Recipe:
    more = {} if arguments.get("donor") == "sft" else RL
    return get_recipe("reasoning-vectors")(**{**SMALL, **more, **arguments})


def fitted(recipe: Recipe, task: str = "parity") -> dict[str, Tensor]:
    fit = Fit(trained_policy(), recipe.stages, get_task(task), options=Options(seed=0, keep="last"))
    assert fit.run().finished
    return {n: p.detach() for n, p in fit.policy.model.named_parameters()}


def models_of(recipe: Recipe) -> Snapshots:
    weights: Any = recipe.stages[-1].weights
    return weights.models


def start() -> dict[str, Tensor]:
    return {n: p.detach() for n, p in trained_policy().model.named_parameters()}


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(a[n], b[n]) for n in start())


# -- the recipe ----------------------------------------------------------------------------------------------------------
def test_a_run_makes_both_donors_and_the_recipient_from_its_base() -> None:
    recipe = made(scale=0.5)
    ended = fitted(recipe)
    models = models_of(recipe)
    assert set(models) == {"base", "recipient", "before", "after"} and same(models["base"], start())
    for name, stages in (("recipient", recipe.stages[:1]), ("before", recipe.stages[1:2])):
        assert not same(models[name], models["base"]), name
        assert [s.start for s in stages] == [{"recipient": "last", "before": "base"}[name]]
    assert recipe.stages[2].start == "last", "GRPO goes on from the SFT donor"
    for name, before in start().items():
        v = models["after"][name] - models["before"][name]
        torch.testing.assert_close(ended[name], models["recipient"][name] + 0.5 * v, rtol=1e-6, atol=1e-7)
        assert before.shape == v.shape
    assert any(bool((models["after"][n] != models["before"][n]).any()) for n in ended if "norm" in n), "norms too"


def test_the_recipient_alone_is_that_of_a_run_with_donors_and_alpha_0_is_it() -> None:
    recipe, alone = made(), made(scale=0)
    fitted(recipe)
    models, policy = models_of(recipe), trained_policy()
    assert len(alone.stages) == 1 and not alone.probes and same(fitted(alone), models["recipient"])
    transfer(policy, models, 0.0 * between(models))
    assert same(dict(policy.model.named_parameters()), models["recipient"])


def test_the_recipient_learns_by_plain_sft() -> None:
    sft = get_recipe("sft")(steps=2, batch=4, lr=1e-2, limit=12)
    assert same(fitted(made(scale=0)), fitted(sft))
    mixed = get_recipe("sft")(steps=2, batch=4, lr=1e-2, mixture="parity#8;parity:level=2#8")
    assert same(fitted(made(scale=0, recipient="parity#8;parity:level=2#8")), fitted(mixed))


def test_the_donor_before_plus_the_vector_is_the_donor_after() -> None:
    recipe = made()
    fitted(recipe)
    models = models_of(recipe)
    for name, tensor in apply(models["before"], between(models)):
        torch.testing.assert_close(tensor, models["after"][name], rtol=1e-6, atol=1e-7)


def test_added_and_subtracted_returns_the_recipient() -> None:
    recipe = made()
    fitted(recipe)
    models, v = models_of(recipe), between(models_of(recipe))
    there = dict(apply(models["recipient"], v))
    assert not same(there, models["recipient"])
    for name, tensor in apply(there, -v):
        torch.testing.assert_close(tensor, models["recipient"][name], rtol=2e-7, atol=2e-7)


def test_the_kinds_of_vector() -> None:
    recipe = made()
    fitted(recipe)
    models = models_of(recipe)
    v = between(models)
    expected = {
        "whole": WeightDelta.between(models["after"], models["base"]),
        "random": random_like(v, 7),
        "shuffled": shuffled(v, 7),
    }
    for kind, want in expected.items():
        found = between(models, kind, 7)
        assert all(torch.equal(found.dense(n), want.dense(n)) for n in want), kind
    for name in v:
        assert float(expected["random"].dense(name).norm()) == pytest.approx(float(v.dense(name).norm()), rel=1e-5)
    used = made(vector="shuffled")
    assert not same(fitted(used), fitted(made()))


def test_donors_of_another_kind_are_refused() -> None:
    """A name, or a shape, that only one of them has."""
    policy, models = trained_policy(), Snapshots()
    for name in ("recipient", "before", "after"):
        models.take(name, policy)
    odd = "model.embed_tokens.weight"
    models.held["after"] = {**models["after"], odd: torch.zeros(321, 32)}
    before = start()
    with pytest.raises(
        WhetError, match=f"not models of one kind: {odd} is .320, 32. in one and .321, 32. in the other"
    ):
        transfer(policy, models, between(models))
    models.held["after"] = {n: t for n, t in models["before"].items() if n != odd}
    with pytest.raises(WhetError, match="not models of one kind: only the"):
        between(models)
    smaller = {n: t for n, t in before.items() if "layers.1." not in n}
    v = WeightDelta.between(before, before)
    with pytest.raises(WhetError, match="are not models of one kind"):
        v.check(smaller)
    assert same(dict(policy.model.named_parameters()), before), "nothing was written"


def test_donors_of_more_sft_take_as_many_steps() -> None:
    recipe = made(donor="sft", steps=3)
    assert [s.steps for s in recipe.stages] == [2, 2, 3] and recipe.stages[2].reward is None
    assert recipe.stages[2].start == "last" and recipe.stages[2].updates[0].optimizer.lr == 1e-2
    assert (
        get_recipe("reasoning-vectors")(donor="sft").stages[2].steps
        == get_recipe("reasoning-vectors")().stages[2].steps
    )
    with pytest.raises(WhetError, match="donor=sft has no use for group, kl"):
        made(donor="sft", group=4, kl=0.1)


def test_a_share_of_the_demonstrations_shows_its_rationale() -> None:
    for share, least, most in ((0.0, 0, 0), (0.5, 20, 44), (1.0, 64, 64)):
        policy, task = trained_policy(), get_task("parity")
        stage = made(rationales=share, sft_batch=64).stages[1]
        stage.problems.bind(task, 0)
        rows = stage.collect.rows(stage.problems, 64, policy, Scope(task, 0))
        shown = sum(any(s.kind == "rationale" for s in row["response"].segments) for row in rows)
        assert least <= shown <= most, share
    with pytest.raises(WhetError, match="from 0 to 1, not"):
        made(rationales=1.5)


def test_what_cannot_work_is_refused() -> None:
    for wrong in ({"vector": "dnor"}, {"donor": "ppo"}):
        with pytest.raises(WhetError, match="unknown"):
            get_recipe("reasoning-vectors")(**wrong)
    recipe = get_recipe("reasoning-vectors")()
    assert recipe.stages[2].updates[0].optimizer.lr == Rate(small=1e-4, paper=5e-7)
    assert recipe.stages[0].updates[0].optimizer.lr == Rate(small=5e-4, paper=5e-6)


# -- a run ---------------------------------------------------------------------------------------------------------------
SETTINGS = {"test_n": 8, "validation_n": 4, "k": 0, "others": [], "eval_every": 0, "threads": 1, "task": "parity"}


def launched(out: Path, **more: Any) -> Result:
    return run(
        "reasoning-vectors",
        out=out,
        model=trained_folder(),
        **{**SETTINGS, **SMALL, **RL, "sweep": [-1, 0, 0.5], **more},
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return launched(tmp_path_factory.mktemp("whole") / "run")


def test_a_run_reports_scales_controls_and_donors(whole: Result, tmp_path: Path) -> None:
    found = {k.removeprefix("vector/"): v for k, v in whole.summary["after"].items() if k.startswith("vector/")}
    assert set(found) == {"-1", "0", "0.5", "whole", "random", "shuffled", "before", "after", "barrier", "cosine"}
    assert all(0 <= v <= 1 for k, v in found.items() if k not in ("barrier", "cosine"))
    assert found["barrier"] >= 0 and -1 <= found["cosine"] <= 1
    assert not any(k.startswith("vector/") for k in whole.summary["before"]), "before there are donors nothing is told"
    quiet = launched(tmp_path / "quiet", sweep=[])
    assert not any(k.startswith("vector/") for k in quiet.summary["after"])
    ours, theirs = (dict(r.policy.model.named_parameters()) for r in (whole, quiet))
    assert same(ours, theirs), "measuring leaves the policy as it was"


def test_a_probe_measures_the_recipient_plus_the_vector() -> None:
    recipe = made(sweep=[0, 1])
    ended = fitted(recipe)
    models, task, policy = models_of(recipe), get_task("parity"), trained_policy()
    (probe,) = recipe.probes
    assert isinstance(probe, Transferred) and not probe.looks
    probe.bind(policy, task, 0)
    greedy = evaluate(policy, task, task.problems("test", 16))
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            p.copy_(ended[name])
    found = probe.measure(policy, greedy)
    own = evaluate(policy, task, greedy.problems, temperature=1.0, seed=0)
    assert found["vector/1"] == pytest.approx(sum(row[0].value for row in own.cells) / 16)
    assert same(dict(policy.model.named_parameters()), ended)
    assert models is probe.models


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_it_resumes_in_every_stage(stop: int, whole: Result, tmp_path: Path) -> None:
    count = iter(range(1, 100))
    launched(tmp_path / "halted", stop=lambda: next(count) >= stop)
    resumed = resume(tmp_path / "halted")
    assert whole.progress.total == 6
    assert same(dict(whole.policy.model.named_parameters()), dict(resumed.policy.model.named_parameters()))
    assert whole.summary["after"] == resumed.summary["after"]


def test_a_run_that_ends_twice_adds_once() -> None:
    recipe = made()
    fit = Fit(trained_policy(), recipe.stages, get_task("parity"), options=Options(seed=0, keep="last"))
    fit.run()
    once = {n: p.detach().clone() for n, p in fit.policy.model.named_parameters()}
    weights: Any = recipe.stages[-1].weights
    weights.at_stage_end(fit.policy)
    assert same(dict(fit.policy.model.named_parameters()), once)


def test_adapters_are_refused() -> None:
    with pytest.raises(WhetError, match="says itself which weights move"):
        run("reasoning-vectors", model=trained_folder(), weights="lora", **SETTINGS, **SMALL, **RL)


# -- the study -----------------------------------------------------------------------------------------------------------
VALUES = {"0": 0.4, "1": 0.7, "-1": 0.2, "random": 0.4, "shuffled": 0.38}


def scores(values: dict[str, float], sft: float = 0.45) -> Scores:
    def one(arm: str, seed: int | None) -> Cell:
        rng = random.Random(f"{arm}/{seed}")
        own = {**VALUES, **values} if arm == "vector" else {**VALUES, "1": sft}
        metrics = {"accuracy": 0.5, **{f"vector/{n}": v + rng.uniform(-0.005, 0.005) for n, v in own.items()}}
        curve = [{"step": 0, "share": 1.0, "flops": 1.0, "accuracy": 0.5}]
        return Cell(arm, seed, "k", {}, "d", STUDY.task, {"hash": "h"}, metrics, {"greedy": "10", "k": 0, "sampled": ""}, {},
                    curve)  # fmt: skip

    return Scores([one(START, None), *(one(arm, seed) for arm in STUDY.arms for seed in range(3))])


def test_every_arm_is_a_recipe_that_the_task_suits() -> None:
    for arm in parse_arms(STUDY.arms):
        config = arm.config(STUDY.task, 0, STUDY.settings)
        recipe = get_recipe(config.recipe)(**config.arguments)
        recipe.check(get_task(STUDY.task))
        assert len(recipe.stages) == (1 if arm.label == "recipient" else 3)
        collect = recipe.stages[0].collect
        assert isinstance(collect, Demonstrations) and collect.rationale == 0.5


def test_the_claim_is_reproduced_where_it_holds() -> None:
    found = STUDY.judge(scores({}))
    assert found.outcome == "reproduced", found.why


@pytest.mark.parametrize(
    "values",
    [{"1": 0.3}, {"-1": 0.5}, {"random": 0.8}, {"shuffled": 0.8}, {"random": 0.3}],
    ids=lambda v: next(iter(v)),
)
def test_it_is_not_where_one_part_does_not_hold(values: dict[str, float]) -> None:
    assert STUDY.judge(scores(values)).outcome == "not reproduced"


def test_more_sft_that_does_as_much_refutes_it() -> None:
    assert STUDY.judge(scores({}, sft=0.9)).outcome == "not reproduced"
