"""Choices: the numbers of PINTO's card, lengths, batches and gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tiny import tiny_policy
from whet.errors import WhetError
from whet.models.packing import Batch
from whet.objectives import Context, Hide, nll
from whet.objectives.choices import ChoiceLoss, cross_entropy, score_choices, scores
from whet.objectives.forward import run
from whet.objectives.views import Clean
from whet.records import Row, Sample, Segment
from whet.training.learner import Learner
from whet.training.stage import Update
from whet.weights import Weights

FP64: dict[str, Any] = {"dtype": torch.float64}


def question(place: int = 0, lengths: tuple[int, ...] = (1, 3, 2), gold: int = 1, rationale: int = 4) -> Row:
    """A row of choices of some lengths, each behind its own rationale."""
    prompt = list(range(10 + place, 16 + place))
    samples = []
    for i, n in enumerate(lengths):
        reason = Segment("rationale", list(range(30 + 7 * i, 30 + 7 * i + rationale)))
        words = Segment("answer", list(range(80 + 5 * i + place, 80 + 5 * i + place + n)), learn=True)
        samples.append(
            Sample([Segment("question", prompt), reason, Segment("prefix", [7]), words], f"p{place}", f"p{place}", i)
        )
    return Row({"choices": samples}, {"gold": float(gold)})


def test_1_the_worked_numbers() -> None:
    rho = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    assert rho.softmax(0).tolist() == pytest.approx([0.7311, 0.2689], abs=5e-5)
    standard, spoilt = cross_entropy(rho, 0), cross_entropy(rho, 0, smoothing=0.1)
    assert float(standard) == pytest.approx(0.313262, abs=5e-7)
    assert float(spoilt) == pytest.approx(0.363262, abs=5e-7)
    assert float(standard + 1.0 * spoilt) == pytest.approx(0.676523, abs=1e-6)
    theirs = torch.nn.functional.cross_entropy(rho[None], torch.tensor([0]), label_smoothing=0.1)
    assert float(spoilt) == pytest.approx(float(theirs), abs=1e-12)


class Fixed:
    """A forward whose log-probabilities are given."""

    def __init__(self, values: list[list[float]], policy: Any) -> None:
        samples = [
            Sample([Segment("question", [5]), Segment("answer", [7 + j for j in range(len(v))], learn=True)])
            for v in values
        ]
        self.batch = Batch.of(samples)
        self.logprobs = torch.tensor([x for v in values for x in v], dtype=torch.float64)
        self.policy = policy

    def by_sequence(self, values: torch.Tensor, *, mean: bool = False) -> torch.Tensor:
        total = torch.zeros(len(self.batch.samples), dtype=values.dtype).index_add(0, self.batch.sequence, values)
        return total / self.batch.lengths if mean else total


def test_2_the_mean_does_not_know_how_long_a_choice_is() -> None:
    policy = tiny_policy()
    once, twice = [-1.0, -3.0], [-1.0, -3.0, -1.0, -3.0]
    found: Any = Fixed([once, twice], policy)
    assert scores(found).tolist() == [-2.0, -2.0]
    assert scores(found, "none").tolist() == [-4.0, -8.0]
    words = [len(policy.format.decode(s.response).strip()) for s in found.batch.samples]
    assert scores(found, "character").tolist() == pytest.approx([-4.0 / words[0], -8.0 / words[1]])


@pytest.mark.parametrize("lengths", ["token", "none", "character"])
def test_the_loss_is_the_definition_written_out(lengths: str) -> None:
    policy, rows = tiny_policy(**FP64), [question(0), question(1, (2, 2), 0)]
    term = ChoiceLoss(smoothing=0.1, lengths=lengths)
    total = term.total(Context(rows, {"policy": policy}))
    expected = 0.0
    for row in rows:
        own = []
        for s in row.get("choices"):
            logits = policy.logits(torch.tensor([s.ids]))[0].log_softmax(-1)
            first = s.prompt_length
            picked = [logits[t - 1, s.ids[t]] for t in range(first, len(s))]
            size = {"token": len(picked), "none": 1}.get(lengths) or len(policy.format.decode(s.response).strip())
            own.append(sum(picked) / size)
        logp = torch.stack(own).log_softmax(0)
        target = torch.full((len(own),), 0.1 / len(own), dtype=torch.float64)
        target[int(row.numbers["gold"])] += 0.9
        expected = expected - float((target * logp).sum())
    assert float(total) == pytest.approx(expected, rel=1e-10)
    assert term.count(rows) == 2


def test_micro_batches_do_not_change_the_gradient() -> None:
    rows = [question(i, (1, 3, 2), i % 3) for i in range(6)]
    found = []
    for budget in (10_000, 40):
        policy = tiny_policy(**FP64)
        weights = Weights()
        weights.attach(policy, 0)
        Learner(Update(ChoiceLoss()), {"policy": policy}, weights, steps=1, token_budget=budget).accumulate(rows, 0)
        found.append({n: p.grad for n, p in policy.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and found[0]
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-9, atol=1e-12)


def test_scores_do_not_depend_on_their_batch_and_come_back_in_order() -> None:
    policy = tiny_policy(**FP64)
    asked = [
        question(i, lengths, rationale=3 + i).get("choices") for i, lengths in enumerate([(1, 2), (3, 1, 2), (2, 2)])
    ]
    together = score_choices(policy, asked)
    alone = [score_choices(policy, [one], token_budget=1)[0] for one in asked]
    assert [len(s) for s in together] == [2, 3, 2]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert policy.meter.scored_tokens > 0 and not together[0].requires_grad


def test_hidden_tokens_take_part_in_no_score() -> None:
    policy = tiny_policy(**FP64)
    row, other = question(0), question(0)
    for sample in other.get("choices"):
        sample.segments[1].ids = [200, 201, 202, 203]
    hidden = [score_choices(policy, [r.get("choices")], view=Hide(("rationale",)))[0] for r in (row, other)]
    torch.testing.assert_close(hidden[0], hidden[1], rtol=1e-10, atol=1e-12)
    seen = [score_choices(policy, [r.get("choices")])[0] for r in (row, other)]
    assert not torch.allclose(seen[0], seen[1])


def test_positions_reach_the_model() -> None:
    policy = tiny_policy("gpt2", **FP64)
    ids = torch.arange(5, 13)[None]
    shifted = torch.arange(3, 11)[None]
    plain, moved = policy.logits(ids), policy.logits(ids, positions=shifted)
    assert not torch.allclose(plain, moved)
    torch.testing.assert_close(policy.head(policy.hidden(ids, positions=shifted)), moved)
    torch.testing.assert_close(policy.logits(ids, positions=torch.arange(8)[None]), plain)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(WhetError, match="unknown length of a choice 'tokens': did you mean 'token'"):
        ChoiceLoss(lengths="tokens")
    with pytest.raises(WhetError, match="normalise is row"):
        ChoiceLoss(normalise="token")
    assert math.isclose(float(ChoiceLoss().total(Context([question()], {"policy": tiny_policy()}))), 0.0) is False
    assert (nll() + ChoiceLoss()).roles == {"response", "choices"}
    assert run(tiny_policy(), Batch.of(question().get("choices")), Clean(), 0, 1.0).logprobs.shape == (6,)
