"""Probes on planted numbers: drift of hand-made distributions, certainty of hand-made answers; and where their numbers go."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import tiny_policy
from trained import trained_folder, trained_policy
from whet.compare import compare
from whet.errors import WhetError
from whet.evaluation.evaluate import Evaluator, Plan
from whet.evaluation.matrix import Cell, Matrix, confidence, evaluate
from whet.evaluation.probes import ConfidentWrong, Drift, confident_wrong, drift, get_probes
from whet.evaluation.scores import LOWER_IS_BETTER
from whet.launch import run
from whet.models.policy import Policy
from whet.records import Row, Sample, Segment
from whet.tasks import Procedural, get_task
from whet.weights import Lora

ANSWERS = ([8, 9], [10, 11, 12], [7])
ROWS = [Row({"response": Sample([Segment("question", [5, 6, 7]), Segment("answer", a, learn=True)])}) for a in ANSWERS]
QUICK: dict[str, Any] = {"task": "parity", "test_n": 6, "validation_n": 6, "k": 0, "others": []}


# -- drift ---------------------------------------------------------------------------------------------------------------
def saying(chances: dict[int, float]) -> Policy:
    """A policy whose next-token distribution is the same everywhere: these chances, and the rest shared evenly."""
    policy = tiny_policy("gpt2", dtype=torch.float64, tie_word_embeddings=False)
    model: Any = policy.model
    rest = (1 - sum(chances.values())) / (model.config.vocab_size - len(chances))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.ln_f.bias[0] = 1.0  # all weights 0: every last state is this unit vector
        model.lm_head.weight[:, 0] = math.log(rest)
        for token, chance in chances.items():
            model.lm_head.weight[token, 0] = math.log(chance)
    return policy


def test_drift_is_the_forward_kl_with_the_start_first() -> None:
    """The distributions of asft's worked number (start .5 .25 .25, policy uniform over the three: 0.058892, and the other
    direction 0.056633), each scaled to 0.75 of the mass; what both share adds nothing."""
    start, policy = saying({3: 0.375, 4: 0.1875, 9: 0.1875}), saying({3: 0.25, 4: 0.25, 9: 0.25})
    assert drift(policy, start, ROWS) == pytest.approx(0.75 * 0.058892, abs=1e-6)
    assert drift(start, policy, ROWS) == pytest.approx(0.75 * 0.056633, abs=1e-6)
    size = policy.model.config.vocab_size
    even, sharp = saying({}), saying({3: 0.5})
    half = -math.log(size) - math.log(0.5) / size - (size - 1) / size * math.log(0.5 / (size - 1))
    assert drift(sharp, even, ROWS) == pytest.approx(half, rel=1e-12)


def test_drift_is_a_mean_over_learnt_tokens_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    start, policy = tiny_policy(dtype=torch.float64), tiny_policy(dtype=torch.float64, seed=1)
    whole = drift(policy, start, ROWS)
    alone = [drift(policy, start, [row]) for row in ROWS]
    sizes = [len(a) for a in ANSWERS]
    assert whole == pytest.approx(sum(n * d for n, d in zip(sizes, alone, strict=True)) / sum(sizes), rel=1e-10)
    monkeypatch.setattr("whet.evaluation.probes.token_budget", lambda asked, device: 1)
    assert drift(policy, start, ROWS) == pytest.approx(whole, rel=1e-10)


def test_drift_starts_at_nothing_and_spends_nothing() -> None:
    policy, probe = trained_policy(), Drift(n=5)
    probe.bind(policy, get_task("parity"), 0)
    assert len(probe.rows) == 5 and all("/validation/" in row.problem_id for row in probe.rows)
    policy.model.train()
    assert probe.measure(policy, Matrix([])) == {"drift_kl": 0.0} and policy.model.training
    with torch.no_grad():
        for p in policy.model.parameters():
            p += 0.05
    assert probe.measure(policy, Matrix([]))["drift_kl"] > 1e-3, "the start does not move along"
    assert policy.meter.flops == 0 and not any(p.grad is not None for p in policy.model.parameters())


def test_drift_with_adapters() -> None:
    policy, probe = trained_policy(), Drift(n=3)
    probe.bind(policy, get_task("parity"), 0)
    Lora(2).attach(policy, 0)
    assert probe.measure(policy, Matrix([]))["drift_kl"] == pytest.approx(0, abs=1e-6)


class Bare(Procedural):
    name = "bare"

    def provides(self) -> set[str]:
        return {"verifier"}


def test_drift_needs_demonstrations() -> None:
    with pytest.raises(WhetError, match="drift is measured on demonstrations, and task 'bare' has none"):
        Drift().bind(trained_policy(), Bare(), 0)


# -- confident wrong answers ---------------------------------------------------------------------------------------------
def cell(value: float, sure: float) -> Cell:
    return Cell(value, "ok" if value == 1 else "wrong", 3, True, "x", confidence=sure)


def matrix(*cells: Cell) -> Matrix:
    return Matrix([], [[c, cell(0.0, 1.0)] for c in cells])  # further answers do not count


def test_the_share_of_wrong_answers_that_are_certain() -> None:
    planted = matrix(cell(1, 0.99), cell(0, 0.95), cell(0, 0.9), cell(0.5, 0.91), cell(0, 0.2), cell(1, 0.3))
    assert confident_wrong(planted) == {"confident_wrong": 2 / 4, "confident_wrong_rate": 2 / 6}
    assert confident_wrong(planted, 0.1) == {"confident_wrong": 1.0, "confident_wrong_rate": 4 / 6}
    assert ConfidentWrong(0.92).measure(trained_policy(), planted)["confident_wrong"] == 1 / 4


def test_what_cannot_be_judged_or_carries_no_probabilities_is_left_out() -> None:
    odd = matrix(cell(math.nan, 0.99), cell(0, math.nan), cell(1, math.nan), cell(0, 0.99), cell(0, 0.1))
    assert confident_wrong(odd) == {"confident_wrong": 0.5, "confident_wrong_rate": 0.5}
    assert confident_wrong(matrix(cell(1, 0.99))) == {"confident_wrong_rate": 0.0}, "no wrong answer, no share of them"
    assert confident_wrong(matrix(cell(0, math.nan))) == {} == confident_wrong(Matrix([]))


def test_an_answers_confidence_is_the_mean_probability_of_what_was_sampled() -> None:
    segments = [Segment("question", [5, 6]), Segment("prefix", [4]), Segment("answer", [7, 8], sampled=True)]
    chances = torch.tensor([0.0, 0.0, 0.0, math.log(0.5), math.log(0.25)])
    assert confidence(Sample(segments, per_token={"sampler_logprob": chances})) == 0.375
    assert math.isnan(confidence(Sample(segments)))
    assert math.isnan(confidence(Sample(segments[:1], per_token={"sampler_logprob": chances[:2]})))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_policys_own_probabilities_are_what_the_matrix_holds(temperature: float) -> None:
    policy, task = trained_policy(), get_task("parity")
    problems = task.problems("test", 4)
    found = evaluate(policy, task, problems, temperature=temperature, seed=1)
    for problem, (answer,) in zip(problems, found.cells, strict=True):
        prompt = [i for s in policy.format.prompt(problem) for i in s.ids]
        assert 0 < answer.confidence <= 1
        if temperature == 0:  # greedily the largest probability of each token
            ids = list(prompt)
            chances = []
            for _ in range(answer.tokens):
                with torch.no_grad():
                    chance, token = policy.logits(torch.tensor([ids]))[0, -1].softmax(-1).max(-1)
                chances.append(float(chance))
                ids.append(int(token))
            assert answer.confidence == pytest.approx(sum(chances) / len(chances), abs=1e-5)
    assert found.as_dict()["confidence"] == [[c.confidence for c in row] for row in found.cells]


# -- who asks ------------------------------------------------------------------------------------------------------------
def test_probes_by_name() -> None:
    assert [type(p) for p in get_probes(["drift", "confident-wrong", "drift"])] == [Drift, ConfidentWrong]
    assert get_probes([]) == []
    with pytest.raises(WhetError, match="unknown probe 'drif': did you mean 'drift'"):
        run("sft", model=trained_folder(), probes=["drif"], **QUICK)


def test_nothing_is_measured_that_is_not_asked_for() -> None:
    found = Evaluator(get_task("parity"), Plan(validation=3)).validation(trained_policy())
    assert not any("drift" in name or "confident" in name for name in found)


def test_a_run_has_them_at_each_look_before_and_after(tmp_path: Path) -> None:
    asked = {**QUICK, "probes": ["drift", "confident-wrong"], "eval_every": 1, "steps": 2, "batch": 4}
    done = run("sft", out=tmp_path / "run", model=trained_folder(), **asked)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    looks = [row["validation/drift_kl"] for row in rows if "validation/drift_kl" in row]
    assert len(looks) == 3 and looks[0] == 0.0 and min(looks[1:]) > 0
    assert all(0 <= row["validation/confident_wrong_rate"] <= 1 for row in rows if "validation/accuracy" in row)
    assert done.summary["before"]["drift_kl"] == 0.0 < done.summary["after"]["drift_kl"]
    assert "confident_wrong_rate" in done.summary["after"]


def test_a_comparison_keeps_them_in_its_cells(tmp_path: Path) -> None:
    shared = {**QUICK, "model": trained_folder(), "probes": ["drift"], "evaluations": 2, "batch": 4, "threads": 1}
    found = compare({"sft": "sft", "dft": "dft"}, budget="steps:2", seeds=2, out=tmp_path, **shared)
    for arm in ("sft", "dft"):
        for one in found.scores.cells[arm]:
            curve = [point["drift_kl"] for point in one.curve]
            assert len(curve) == 3 and curve[0] == 0.0 and one.metrics["drift_kl"] == pytest.approx(curve[-1], rel=0.5)
    assert found.scores.start is not None and found.scores.start.metrics["drift_kl"] == 0.0
    assert "drift_kl" in found.scores.metrics and {"drift_kl", "confident_wrong"} <= set(LOWER_IS_BETTER)


def test_the_studies_that_claim_something_of_them_ask_for_them() -> None:
    from whet.study import get_study

    assert get_study("asft").asked()["probes"] == ["drift"]
    assert get_study("noisefit").asked()["probes"] == ["confident-wrong"]
