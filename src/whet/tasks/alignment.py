"""What two sequences share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def common(a: Sequence[str], b: Sequence[str]) -> tuple[list[bool], list[bool]]:
    """Which items of each belong to a longest common subsequence of both."""
    lengths = np.zeros((len(a) + 1, len(b) + 1), dtype=np.int32)
    right = np.array(list(b), dtype=object)
    for i, item in enumerate(a):
        step = np.maximum(lengths[i, 1:], lengths[i, :-1] + (right == item))
        lengths[i + 1, 1:] = np.maximum.accumulate(step) if len(b) else 0
    found, other = [False] * len(a), [False] * len(b)
    i, j = len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            found[i] = other[j] = True
        elif lengths[i - 1, j] >= lengths[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return found, other
