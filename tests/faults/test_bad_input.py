"""Whatever a user gets wrong, the answer is a `WhetError` of one line that says where: never a traceback from inside."""

from __future__ import annotations

import pytest
from bad_input import KINDS, Tally, survey

from whet.errors import WhetError

FAST = {
    "rows": 250,
    "files": 120,
    "templates": 40,
    "arguments": 200,
    "configs": 150,
    "checkpoints": 40,
    "models": 30,
    "runs": 80,
}
# of each kind at least so many attempts, and so many refusals among them: a survey that tries nothing finds nothing
LEAST = {"rows": (200, 100), "fields": (55, 55), "files": (150, 60), "templates": (80, 13), "arguments": (5000, 4000),
         "configs": (600, 400), "checkpoints": (80, 80), "models": (30, 15), "runs": (100, 40)}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_refusal_is_one_line_that_says_where(kind: str) -> None:
    found = survey(FAST.get(kind, 1), (kind,))[kind]
    tried, refused = LEAST[kind]
    assert found["tried"] == found["refused"] + found["taken"] >= tried
    assert found["refused"] >= refused


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_so_it_is_with_many_more(kind: str) -> None:
    assert survey(3000, (kind,))[kind]["tried"]


def test_the_survey_sees_what_it_looks_for() -> None:
    tally = Tally()

    def refuse(text: str) -> None:
        raise WhetError(text)

    assert tally.attempt(lambda: refuse("f:1: field 'a' is empty"), "f:1: ", "'a'") and not tally.attempt(dict)
    assert tally == {"tried": 2, "refused": 1, "taken": 1}
    for bad, says, must in ((lambda: 1 / 0, "", False), (lambda: refuse("f:1"), "f:2", False), (dict, "", True),
                            (lambda: refuse(""), "", False)):  # fmt: skip
        with pytest.raises(AssertionError):
            Tally().attempt(bad, says, must=must)
