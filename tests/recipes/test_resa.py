"""SAE-tuning: the direction of its divergence, where gradients go, what stays as it is, its stages, its probe and its study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tiny import tiny_policy
from trained import trained_folder, trained_policy
from whet.arms import parse_arms
from whet.errors import WhetError
from whet.evaluation.evaluate import Evaluator, Plan
from whet.evaluation.matrix import Matrix
from whet.evaluation.probes import NUMBERS, Drift, Spliced, get_probes
from whet.evaluation.scores import Cell, Scores
from whet.launch import resume, run
from whet.models.autoencoder import NAME, SparseAutoencoder, fvu, new_autoencoder, outputs
from whet.models.base import load
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.objectives import Context, as_objective, forward_kl
from whet.objectives.coding import Coded, Reconstruction
from whet.recipes.recipe import Recipe, get_recipe
from whet.recipes.sparse.resa import CENTRE, Texts
from whet.recipes.sparse.resa_study import changes
from whet.records import Row, Sample, Segment
from whet.sources import Scope, Uniform
from whet.study import get_study
from whet.tasks import get_task
from whet.training.fit import Fit
from whet.training.optimizer import Rate
from whet.training.options import Options
from whet.weights import Lora

ASKED = [Segment("start", [5]), Segment("question", [6, 7], learn=True)]
ROWS = [Row({"response": Sample([*ASKED, Segment("answer", a, learn=True)])}) for a in ([8], [9, 10, 11])]
SMALL: dict[str, Any] = {"steps": 2, "sae_steps": 2, "warm": 2, "batch": 4, "latents": 64, "active": 4, "rank": 2}
QUICK: dict[str, Any] = {"task": "parity", "test_n": 4, "validation_n": 6, "k": 0, "others": [], "eval_every": 0}


def made(**arguments: Any) -> Recipe:
    return get_recipe("resa")(**{**SMALL, **arguments})


def adapted(moved: bool = True, layers: int = 3) -> Policy:
    """A policy with adapters, whose B is not 0 any more where they have `moved`, and a random autoencoder of its middle block."""
    policy = tiny_policy("gpt2", dtype=torch.float64, num_hidden_layers=layers)
    Lora(2).attach(policy, 0)
    torch.manual_seed(0)
    policy.modules[NAME] = new_autoencoder(policy, 64, 4)
    if moved:
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
    return policy


def loss(policy: Policy, term: Any, rows: list[Row] = ROWS) -> Tensor:
    objective = as_objective(term)
    ctx = Context(rows, {"policy": policy, "reference": policy}, objective.counts(rows))
    return sum(total / count for total, count in objective.total(ctx).values())


def gradients(policy: Policy, **view: Any) -> dict[str, float]:
    """The gradient's norm of each adapter; 0 where there is none."""
    loss(policy, forward_kl("sequence-sum", view=Coded(**view))).backward()
    found = {n: p for n, p in policy.model.named_parameters() if "lora_" in n}
    return {n: 0.0 if p.grad is None else float(p.grad.norm()) for n, p in found.items()}


# -- the divergence ------------------------------------------------------------------------------------------------------
def test_its_direction() -> None:
    """The target's .9 .1 against .5 .5: .9 log 1.8 + .1 log .2 = 0.3681; the other direction has 0.5108."""
    p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    taken: dict[str, Any] = {}

    class Fixed:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

        def per_token(self, fn: Any, other: Any) -> Tensor:
            return fn(self.logits, torch.tensor([0]), other.logits)

        def reduce(self, values: Tensor, normalise: str) -> Tensor:
            return values.sum()

    class Two:
        def forward(self, role: str, view: Any = None, who: str = "policy", grad: bool = True) -> Fixed:
            taken[who] = view
            return Fixed(q if who == "policy" else p)

        def log(self, *_: Any) -> None: ...

    view = Coded()
    assert float(forward_kl(view=view).total(Two())) == pytest.approx(0.3681, abs=5e-5)  # type: ignore[arg-type]
    assert taken == {"policy": view, "reference": None}, "the autoencoder is the student's alone"
    p, q = q, p
    assert float(forward_kl(view=view).total(Two())) == pytest.approx(0.5108, abs=5e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("through", [False, True])
def test_a_perfect_autoencoder_teaches_nothing(through: bool) -> None:
    policy = adapted(moved=False)
    sae = SparseAutoencoder(32, 64, 32, block=1, dtype=torch.float64)
    both = torch.cat([torch.eye(32), -torch.eye(32)]).double()
    with torch.no_grad():
        sae.encoder.copy_(both)
        sae.decoder.copy_(both)
    policy.modules[NAME] = sae
    assert abs(float(loss(policy, forward_kl(view=Coded(1, through))).detach())) < 1e-12
    assert max(gradients(policy, block=1, through=through).values()) < 1e-7
    policy.modules[NAME] = adapted().modules[NAME]
    assert float(loss(policy, forward_kl(view=Coded(1, through))).detach()) > 1e-3, "a random one does"


def test_sums_over_tokens_and_means_over_texts() -> None:
    """`batchmean` of [1, T, V] is the sum over a text's tokens, prompts among them."""
    policy = adapted()
    one = [loss(policy, forward_kl("sequence-sum", view=Coded()), [row]).item() for row in ROWS]
    mean = [loss(policy, forward_kl("token", view=Coded()), [row]).item() for row in ROWS]
    assert one == pytest.approx([3 * mean[0], 5 * mean[1]], rel=1e-10)
    assert loss(policy, forward_kl("sequence-sum", view=Coded())).item() == pytest.approx(sum(one) / 2, rel=1e-10)


# -- gradients -----------------------------------------------------------------------------------------------------------
def test_none_trains_what_comes_after_and_through_all() -> None:
    released, prose = gradients(adapted()), gradients(adapted(), through=True)
    for block in range(3):
        own = [[v for n, v in found.items() if f".h.{block}." in n] for found in (released, prose)]
        assert own[0] and all((v > 0) == (block == 2) for v in own[0]), "the middle block of three is coded: a constant"
        assert all(v > 0 for v in own[1])


def test_the_first_gradient_reaches_b_alone() -> None:
    found = gradients(adapted(moved=False), through=True)
    assert all((v > 0) == ("lora_B" in n) for n, v in found.items())


def test_reconstruction_is_of_all_tokens_and_trains_the_autoencoder_alone() -> None:
    policy = adapted()
    value = loss(policy, Reconstruction())
    sae = policy.modules[NAME]
    x = outputs(policy, Batch.of([row["response"] for row in ROWS]), 1)
    assert len(x) == 10 and float(value) == pytest.approx(float(fvu(x, sae(x))), rel=1e-12)
    value.backward()
    assert all(p.grad is not None for p in sae.parameters())
    assert all(p.grad is None for p in policy.model.parameters())
    assert Reconstruction().couples == "batch" and Reconstruction().count(ROWS) == 1.0


# -- the texts -----------------------------------------------------------------------------------------------------------
def test_texts_show_the_answer_for_the_thought_and_learn_all_but_the_first_token() -> None:
    policy, task = trained_policy(), get_task("parity")
    problems = Uniform()
    problems.bind(task, 0)
    rows = Texts(first=False).rows(problems, 3, policy, Scope(task, 0))
    for row in rows:
        sample = row["response"]
        text = policy.format.decode(sample.ids)
        answer = text.partition("<answer>")[2].partition("</answer>")[0]
        assert text.startswith("<user>parity ") and text.endswith(f"<think>{answer}</think><answer>{answer}</answer>")
        assert sample.learn_mask.tolist() == [False] + [True] * (len(sample) - 1) and sample.ended


def test_the_first_texts_centre_it_and_are_drawn_again() -> None:
    policy, task = trained_policy(), get_task("parity")
    policy.modules[NAME] = new_autoencoder(policy, 64, 4)
    problems = Uniform()
    problems.bind(task, 0)
    Texts(first=False).prepare(problems, policy, Scope(task, 0))
    assert not policy.modules[NAME].bias.any()
    texts = Texts(first=True)
    texts.prepare(problems, policy, Scope(task, 0))
    batch = Batch.of([row["response"] for row in texts.rows(problems, CENTRE, policy, Scope(task, 0))])
    torch.testing.assert_close(policy.modules[NAME].bias.detach(), outputs(policy, batch, 0).mean(0))


# -- the stages ----------------------------------------------------------------------------------------------------------
class Seen:
    """All parameters at each stage's entry."""

    def __init__(self) -> None:
        self.entered: dict[str, dict[str, Tensor]] = {}
        self.fit: Fit | None = None

    def stage(self, index: int, stage: Any, *_: Any) -> None:
        assert self.fit is not None
        self.entered[stage.name] = {n: p.detach().clone() for n, p in self.fit.policy.named_parameters()}

    def step(self, *_: Any) -> None: ...

    def evaluated(self, *_: Any) -> None: ...


def fitted(recipe: Recipe) -> tuple[Fit, Seen]:
    seen = Seen()
    fit = Fit(trained_policy(), recipe.stages, get_task("parity"), options=Options(keep="last"), observer=seen)
    seen.fit = fit
    assert fit.run().finished
    return fit, seen


def test_what_moves_in_which_stage() -> None:
    fit, seen = fitted(made(sae_grad="through"))
    ended = {n: p.detach() for n, p in fit.policy.named_parameters()}
    source, extract, elicit = (seen.entered[n] for n in ("source", "extract", "elicit"))
    base = dict(trained_policy().model.named_parameters())
    for name, first in source.items():
        if "lora_" in name:
            assert not torch.equal(extract[name], first) or "lora_A" in name
            assert torch.equal(elicit[name], first), "the source's adapters are thrown away"
            assert not torch.equal(ended[name], first) or "lora_A" in name
        else:
            assert torch.equal(ended[name], base[name.replace(".base_layer.", ".")]), "the base rests throughout"
    codes = [n for n in elicit if n.startswith("modules.sae.")]
    assert len(codes) == 4 and all(not torch.equal(elicit[n], extract[n]) for n in codes if "bias" not in n)
    assert all(torch.equal(ended[n], elicit[n]) for n in codes), "the autoencoder rests while adapters learn"
    ids = torch.arange(2, 30)[None]
    plain = trained_policy().logits(ids)
    assert not torch.equal(fit.policy.logits(ids), plain)
    with fit.policy.adapters_off():
        assert torch.equal(fit.policy.logits(ids), plain), "no hook is left, and below the adapters is the base"


def test_the_teacher_is_the_base_without_a_copy() -> None:
    for recipe in (made(), made(warm=0), made(warm=0, sae_steps=0)):
        fit, _ = fitted(recipe)
        assert fit.policies["reference"] is fit.policy


def test_a_random_autoencoder_is_centred_on_the_source() -> None:
    given = ({}, {"warm": 0}, {"sae_steps": 0}, {"warm": 0, "sae_steps": 0})
    names = [[s.name for s in made(**own).stages] for own in given]
    assert names == [["source", "extract", "elicit"], ["extract", "elicit"], ["source", "elicit"], ["elicit"]]
    fit, _ = fitted(made(sae_steps=0))
    sae = fit.policy.modules[NAME]
    assert torch.equal(sae.encoder, sae.decoder) and sae.bias.any()
    assert [made(sae_steps=n).stages[-1].collect.first for n in (0, 2)] == [True, False]  # type: ignore[attr-defined]


def test_what_the_source_was_at_its_best_is_not_kept() -> None:
    """Validation favours the source: the run still ends with the adapters of its last stage."""
    marks = iter([0.1, 0.9, 0.9, 0.2, 0.2, 0.2, 0.3])
    seen = Seen()
    fit = Fit(trained_policy(), made().stages, get_task("parity"), options=Options(keep="best", eval_every=1), observer=seen,
              evaluate=lambda *_: {"accuracy": next(marks)})  # fmt: skip
    seen.fit = fit
    assert fit.run().finished
    last, _ = fitted(made())
    ours, theirs = dict(fit.policy.model.named_parameters()), dict(last.policy.model.named_parameters())
    assert fit.progress.best_step == 6 and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("steps", [3, 5])
def test_a_run_that_was_halted_in_a_later_stage_is_the_run(steps: int, tmp_path: Path) -> None:
    settings = {**QUICK, **SMALL, "model": trained_folder(), "sae_grad": "through"}
    done = run("resa", out=tmp_path / "whole", **settings)
    count = iter(range(1, 100))
    run("resa", out=tmp_path / "halted", stop=lambda: next(count) >= steps, **settings)
    again = resume(tmp_path / "halted")
    assert again.progress == done.progress
    ours, theirs = dict(done.policy.named_parameters()), dict(again.policy.named_parameters())
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    with safe_open(tmp_path / "whole" / "model" / "adapter_model.safetensors", "pt") as saved:
        assert all("lora_" in name for name in saved.keys()), "the autoencoder is no part of what is left"  # noqa: SIM118


def test_it_refuses() -> None:
    wrongs = [
        ({"sae_grad": "some"}, "unknown gradient"),
        ({"active": 65}, "active is from 1"),
        ({"warm": -1}, "0 or more"),
    ]
    for wrong, said in wrongs:
        with pytest.raises(WhetError, match=said):
            made(**wrong)
    settings = {**QUICK, **SMALL, "model": trained_folder()}
    with pytest.raises(WhetError, match="so that 0 is the last one with another one after it"):
        run("resa", **settings, block=1)
    with pytest.raises(WhetError, match="says itself which weights move"):
        run("resa", **settings, weights="lora")
    assert run("resa", **settings, block=1, sae_grad="through").progress.finished


def test_its_defaults() -> None:
    source, extract, elicit = get_recipe("resa")().stages
    weights: Any = elicit.weights
    assert source.weights is extract.weights is weights and (weights.rank, weights.alpha) == (16, 64.0)
    assert elicit.updates[0].loss.describe() == "1 forward_kl [sequence-sum]"
    assert elicit.updates[0].optimizer.lr == Rate(1e-3, 1e-6) and (elicit.start, elicit.reference) == ("base", "base")
    assert source.updates[0].loss.describe() == "1 nll [token]"
    assert made(normalise="token").stages[-1].updates[0].loss.describe() == "1 forward_kl [token]"


# -- its probe -----------------------------------------------------------------------------------------------------------
def test_the_probe() -> None:
    policy, task = trained_policy(), get_task("parity")
    (probe,) = get_probes(["spliced"])
    assert isinstance(probe, Spliced)
    assert {"spliced_kl", "spliced_accuracy", "spliced_fvu", "tag_latents"} < set(NUMBERS)
    probe.n = 5
    probe.bind(policy, task, 0)
    assert probe.measure(policy, Matrix([])) == {}, "without an autoencoder there is nothing"
    sae = SparseAutoencoder(32, 64, 32)
    with torch.no_grad():
        for weight in (sae.encoder, sae.decoder):
            weight.copy_(torch.cat([torch.eye(32), -torch.eye(32)]))
    policy.modules[NAME] = sae
    found = probe.measure(policy, Matrix([]))
    plain = Evaluator(task, Plan(validation=5)).validation(policy)
    assert found["spliced_kl"] == pytest.approx(0.0, abs=1e-6) and found["spliced_fvu"] == 0.0
    assert found["spliced_accuracy"] == plain["accuracy"], "a perfect one leaves the policy as it is"
    torch.manual_seed(0)
    policy.modules[NAME] = SparseAutoencoder(32, 64, 1)
    worse = probe.measure(policy, Matrix([]))
    assert worse["spliced_kl"] > 0.1 and worse["spliced_fvu"] > 0.1 and worse["tag_latents"] >= 0
    drift = Drift(n=5)
    drift.bind(policy, task, 0)
    assert drift.measure(policy, Matrix([])) == {"drift_kl": 0.0}, "nothing stays spliced in"
    assert policy.meter.flops == 0


def test_a_run_has_its_numbers_once_there_is_an_autoencoder(tmp_path: Path) -> None:
    settings = {**QUICK, **SMALL, "model": trained_folder(), "probes": ["spliced"], "eval_every": 2}
    done = run("resa", out=tmp_path / "run", **settings)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    looks = {row["step"]: row.get("validation/spliced_kl") for row in rows if "validation/accuracy" in row}
    assert list(looks) == [0, 2, 4, 6] and looks[0] is looks[2] is None and looks[4] > 0 and looks[6] > 0
    assert "spliced_kl" not in done.summary["before"] and done.summary["after"]["spliced_fvu"] > 0
    assert {"loss/fvu", "latents_used"} <= rows_of(rows, "extract") and "loss/forward_kl" in rows_of(rows, "elicit")
    assert load(tmp_path / "run" / "model").peft is not None


def rows_of(rows: list[dict[str, Any]], stage: str) -> set[str]:
    return {key for row in rows if row.get("stage") == stage for key in row}


# -- its study -----------------------------------------------------------------------------------------------------------
def scores(kl: float, accuracy: float) -> Scores:
    """Cells in which resa's spliced KL falls from 1 to about `kl`, and its spliced accuracy goes from 0.3 to about `accuracy`."""

    def cell(arm: str, seed: int | None) -> Cell:
        noise = (seed or 0) / 1000
        looks = [(60, None), (120, (1.0, 0.3)), (180, (kl + noise, accuracy - noise))]
        curve = [{"step": step, "accuracy": 0.4, **({} if own is None else {"spliced_kl": own[0], "spliced_accuracy": own[1]})}
                 for step, own in looks]  # fmt: skip
        right = 160 + 20 * (arm == "resa")
        answers = {"greedy": "1" * right + "0" * (400 - right), "k": 0, "sampled": ""}
        config = {"arguments": {"warm": 60, "sae_steps": 60}}
        return Cell(arm, seed, "k", config, "d", "t", {"hash": "h"}, {"accuracy": right / 400}, answers, curve=curve)

    arms = get_study("resa").arms
    return Scores([cell("start", None), *(cell(arm, seed) for arm in arms for seed in range(3))])


@pytest.mark.parametrize(
    ("given", "outcome"),
    [((0.5, 0.4), "reproduced"), ((0.5, 0.301), "inconclusive"), ((0.5, 0.2), "not reproduced"), ((1.1, 0.4), "not reproduced")],
)  # fmt: skip
def test_the_studys_verdict(given: tuple[float, float], outcome: str) -> None:
    found = get_study("resa").judge(scores(*given))
    assert found.outcome == outcome and "resa's accuracy is +0.050" in found.why and "over start" in found.why


def test_changes_are_since_the_adapters_stage_began() -> None:
    assert changes(scores(0.5, 0.4).cells["resa"], "spliced_kl") == pytest.approx([-0.5, -0.499, -0.498])


def test_the_studys_arms_can_run() -> None:
    study = get_study("resa")
    for arm in parse_arms(study.arms):
        config = arm.config(study.task, 0, study.settings)
        get_recipe(config.recipe)(**config.arguments).check(get_task(study.task))
    assert study.asked()["probes"] == ["spliced"]
