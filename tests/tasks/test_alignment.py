"""What two sequences share: one longest common subsequence, marked in both."""

from __future__ import annotations

import pytest

from whet.tasks.alignment import common


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("abcd", "axcy", (1, 0, 1, 0)), ("abcd", "xyz", (0, 0, 0, 0)), ("", "abc", ()), ("abc", "", (0, 0, 0)),
     ("abc", "abc", (1, 1, 1)), ("abcde", "ace", (1, 0, 1, 0, 1)), ("abcbdab", "bdcaba", None)],
)  # fmt: skip
def test_the_longest_common_subsequence(one: str, other: str, expected: tuple[int, ...] | None) -> None:
    first, second = common(one, other)
    shared = [
        "".join(c for c, ok in zip(text, found, strict=True) if ok) for text, found in ((one, first), (other, second))
    ]
    assert shared[0] == shared[1]
    assert expected is None or tuple(map(int, first)) == expected
    assert len(shared[0]) == {"abcbdab": 4}.get(one, sum(expected or ()))  # the textbook's example has length 4


def test_it_is_of_words_too() -> None:
    assert common(["add", "both", "terms"], ["add", "terms"]) == ([True, False, True], [True, True])
