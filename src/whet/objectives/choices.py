"""Choices: which of several answers a model prefers, as a loss and as scores.

Each choice a_i is a sample of its own, in which the words of the choice alone are learnt:

    s_i = sum_j log p(a_i^j | a_i^<j, context_i) / length_i        P(a_i) = softmax_i s_i

The contexts may differ (a rationale for each choice). `length_i` is the number of its tokens or characters, or 1.

| lengths | for |
|---|---|
| `token` | the mean log-probability: long choices are not at a disadvantage |
| `character` | the same, whatever the tokenizer cuts (length in characters) |
| `none` | the likelihood of the whole choice |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.errors import WhetError, unknown
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.objectives.forward import Context, Forward, run
from whet.objectives.objective import Term
from whet.objectives.views import Clean, View
from whet.records import Row, Sample

LENGTHS = ("token", "character", "none")


def scores(forward: Forward, lengths: str = "token") -> Tensor:
    """(B,) the score of each sample of a forward, one sample a choice."""
    total = forward.by_sequence(forward.logprobs, mean=lengths == "token")
    if lengths == "character":
        words = [forward.policy.format.decode(s.response) for s in forward.batch.samples]
        return total / torch.tensor([max(1, len(w.strip())) for w in words]).to(total)
    return total


def cross_entropy(scores: Tensor, gold: int, smoothing: float = 0.0) -> Tensor:
    """-sum_i q_i log P_i with q = (1 - smoothing) onehot(gold) + smoothing / K, for the scores (K,) of a question."""
    logprobs = scores.log_softmax(0)
    return -(1 - smoothing) * logprobs[gold] - smoothing * logprobs.mean()


@dataclass
class ChoiceLoss(Term):
    """Cross-entropy of the right one among a row's `choices`; the row's number `gold` is its index.

    Attributes:
        view: what the model reads; None for the samples as they are.
        smoothing: of the labels, as PyTorch's `cross_entropy` defines it.
        lengths: what a score is divided by: token, character, none.
        name: as it appears in the metrics.
    """

    view: View | None = None
    smoothing: float = 0.0
    lengths: str = "token"
    name: str = "choices"
    normalise: str = "row"

    def __post_init__(self) -> None:
        self.roles = ("choices",)
        if self.lengths not in LENGTHS:
            raise unknown("length of a choice", self.lengths, LENGTHS)
        if self.normalise != "row":
            raise WhetError(f"{self.name}: a choice is made once a row; normalise is row, not {self.normalise}")

    def total(self, ctx: Context) -> Tensor:
        found = scores(ctx.forward("choices", self.view), self.lengths)
        sizes = [len(row.get("choices")) for row in ctx.rows]
        parts = [(s, int(row.numbers["gold"])) for s, row in zip(found.split(sizes), ctx.rows, strict=True)]
        ctx.log(f"{self.name}/accuracy", torch.tensor([float(s.argmax() == gold) for s, gold in parts]))
        return torch.stack([cross_entropy(s, gold, self.smoothing) for s, gold in parts]).sum()


@torch.no_grad()
def score_choices(
    policy: Policy, questions: Sequence[Sequence[Sample]], lengths: str = "token", *, view: View | None = None,
    seed: int = 0, token_budget: int = 8192,
) -> list[Tensor]:  # fmt: skip
    """For each question the scores (K,) of its choices, in batches and without a gradient; on the CPU."""
    rows = [Row({"choices": list(samples)}, {"place": float(i)}) for i, samples in enumerate(questions)]
    found: dict[int, Tensor] = {}
    training = policy.model.training
    policy.model.eval()
    for part in policy.micro_batches(rows, token_budget, padded=view is not None):
        batch = Batch.of([s for row in part for s in row.get("choices")], policy.device)
        values = scores(run(policy, batch, view or Clean(), seed, 1.0), lengths).cpu()
        for row, own in zip(part, values.split([len(r.get("choices")) for r in part]), strict=True):
            found[int(row.numbers["place"])] = own
    policy.model.train(training)
    return [found[i] for i in range(len(rows))]
