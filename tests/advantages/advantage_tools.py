"""Scored answers without a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from whet.records import Row, Sample, Segment


def answer(reward: float = 0.0, length: int = 3, group: str = "g", *, ended: bool = True, **parts: float) -> Row:
    """A row whose response has two prompt tokens and `length` learnt ones."""
    body = [Segment("rationale", list(range(5, 4 + length + (not ended))), learn=True, sampled=True)]
    end = [Segment("eos", [1], learn=True, sampled=True)] if ended else []
    one = Sample([Segment("question", [2, 3]), *(s for s in body if s.ids), *end], problem_id=group, group_id=group)
    return Row({"response": one}, {"reward": reward, **{f"reward/{k}": v for k, v in parts.items()}})


def group(rewards: Sequence[float], name: str = "g") -> list[Row]:
    return [answer(r, 2 + i, name) for i, r in enumerate(rewards)]


def set_tokens(row: Row, **values: Sequence[float]) -> Row:
    """Per-token numbers of the learnt tokens; NaN elsewhere, so that reading them there shows."""
    one = row["response"]
    for name, given in values.items():
        full = torch.full((len(one),), torch.nan, dtype=torch.float64)
        full[one.learn_mask] = torch.tensor(given, dtype=torch.float64)
        one.per_token[name] = full
    return row


def learnt(row: Row, name: str = "advantage") -> list[float]:
    one = row["response"]
    return one.per_token[name][one.learn_mask].tolist()


def advantages(rows: Sequence[Row]) -> list[float]:
    return [row.numbers["advantage"] for row in rows]
