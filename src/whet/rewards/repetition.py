"""Rewards against repetition, on token ids: dense for each token (2502.03373), and one number an answer (2504.21318).

A dense reward belongs to tokens and not to the answer: it is written into `per_token["reward"]`, where an estimator of token
rewards finds it. `generalized_advantage((gamma, gamma_dense), lam=1)` gives it a discount of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import torch

from whet.errors import WhetError
from whet.rewards.reward import Attempt, Parts, Reward, each


def ngrams(items: Sequence[Hashable], n: int) -> Iterator[tuple[Hashable, ...]]:
    """The runs of `n` items, in order; none of a shorter text."""
    return zip(*(items[i:] for i in range(n)), strict=False)


def repeated_share(items: Sequence[Hashable], n: int) -> float:
    """Share of the n-grams that have stood in this text before; 0 where there are none."""
    found = list(ngrams(items, n))
    return 1 - len(set(found)) / len(found) if found else 0.0


def repeated(items: Sequence[Hashable], n: int, only_start: bool = False) -> list[bool]:
    """Which positions lie in an n-gram that has stood in this text before.

    Args:
        only_start: of each unbroken stretch of such positions, only those of its first n-gram.
    """
    marked = [False] * len(items)
    seen = set[tuple[Hashable, ...]]()
    reach = -1  # where the stretch ends: the position behind its last n-gram
    for start, ngram in enumerate(ngrams(items, n)):
        if ngram in seen:
            if not only_start or start > reach:
                marked[start : start + n] = [True] * n
            reach = start + n
        seen.add(ngram)
    return marked


class DenseRepetition(Reward):
    """A penalty on each token that repeats; see `repeated`. Overlapping repeats set it and do not add up.

    It has no part in the answer's own reward. The sum over the answer is logged as `reward/repetition`.
    """

    def __init__(self, n: int, penalty: float, only_start: bool) -> None:
        if n < 1:
            raise WhetError(f"repetition: n-grams have at least 1 token, not {n}")
        self.n, self.penalty, self.only_start = n, penalty, only_start

    def __call__(self, group: Sequence[Attempt]) -> list[Parts]:
        for attempt in group:
            if attempt.row is None:
                raise WhetError("repetition: a reward of tokens needs the attempts' rows")
            sample = attempt.row["response"]
            mask = sample.learn_mask
            ids = torch.tensor(sample.ids)[mask].tolist()
            dense = torch.zeros(len(sample))
            dense[mask] = self.penalty * torch.tensor(repeated(ids, self.n, self.only_start), dtype=torch.float32)
            sample.per_token["reward"] = dense
            attempt.row.numbers["reward/repetition"] = float(dense.sum())
        return [{} for _ in group]


def dense_repetition(n: int = 40, penalty: float = -0.05, only_start: bool = False) -> Reward:
    """`penalty` on all tokens of an n-gram of token ids that the answer has had before (2502.03373)."""
    return DenseRepetition(n, penalty, only_start)


def sparse_repetition(n: int = 40, penalty: float = -0.05) -> Reward:
    """Part `repetition`: `penalty` times the share of repeated n-grams of *words*, on wrong answers only (2502.03373)."""

    def score(attempt: Attempt) -> float:
        right = attempt.verdict.value == 1.0
        return 0.0 if right else penalty * repeated_share(attempt.response.text.split(), n)

    return each("repetition", score)


def excess(items: Sequence[Hashable], n: int = 5, often: int = 5) -> float:
    """How repetitive a text is, in [0, 1] (2504.21318): with f the counts of its n-grams,

    max(#{f > often} / #{n-grams}, max f / (length / n)) over different n-grams; 0 where none has f > often. The report
    leaves open whether different n-grams or all are counted, and what is above 1.
    """
    counts = Counter(ngrams(items, n))
    many = [f for f in counts.values() if f > often]
    return min(1.0, max(len(many) / len(counts), max(many) / (len(items) / n))) if many else 0.0


def repetition(n: int = 5, often: int = 5) -> Reward:
    """Part `repetition`: minus the `excess` of the answer's token ids, in [-1, 0]."""

    def score(attempt: Attempt) -> float:
        if attempt.row is None:
            raise WhetError("repetition: it is counted in tokens, so the attempts need rows")
        return -excess(attempt.row["response"].response, n, often)

    return each("repetition", score)
