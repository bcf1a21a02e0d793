"""word-problem: stories in two languages, told without a fault of grammar."""

from __future__ import annotations

import re

import pytest

from whet.errors import WhetError
from whet.tasks.word_problem import FILLERS, SENTENCES, THEMES, WordProblem

STORY = (0, 0, 1, 3, (("each", 4), ("more", 5), ("fewer", 2), ("times", 3)))


def test_word_problem_pinned() -> None:
    task = WordProblem()
    problem = task.build(STORY, 4)
    assert problem.prompt == (
        "Mia has 3 bags of 4 marbles. Mia wins 5 more. Mia loses 2 marbles. "
        "Tom has 3 times as many marbles as Mia. How many marbles does Tom have now?"
    )
    assert problem.rationale == "3*4=12\n12+5=17\n17-2=15\n15*3=45"
    assert problem.answer == "45"
    assert [s.skill for s in problem.steps] == ["multiply", "add", "subtract", "multiply"]
    assert task.transforms()["language"][0](problem).prompt == (
        "Mia a 3 sacs de 4 billes. Mia gagne encore 5 billes. Mia perd 2 billes. "
        "Tom a 3 fois plus de billes que Mia. Combien de billes a Tom maintenant ?"
    )
    assert task.transforms()["paraphrase"][0](problem).prompt == (
        "At first, Mia has 3 bags, each with 4 marbles. Then Mia wins 5 marbles. Then Mia loses 2 marbles. "
        "Tom has 3 times that many marbles. In the end, how many marbles does Tom have?"
    )


def test_word_problem_language() -> None:
    english, french, mixed = (WordProblem("1-4", lang).problems("train", 300) for lang in ("en", "fr", "mixed"))
    assert all("How many" in p.prompt and p.prompt.isascii() for p in english)
    assert all("Combien de" in p.prompt and " a " in p.prompt for p in french)
    assert not any(re.search(r"\b(has|have|more|many|the)\b", p.prompt) for p in french)
    assert any("é" in p.prompt for p in french)
    assert 100 < sum("Combien" in p.prompt for p in mixed) < 200
    # the same story at the same place in both languages, hence in the same split
    assert [{**p.data, "lang": ""} for p in english] == [{**p.data, "lang": ""} for p in french]
    with pytest.raises(WhetError, match="language"):
        WordProblem(lang="de")


def test_word_problem_grammar() -> None:
    assert len(THEMES["en"]) == len(THEMES["fr"]) >= 8
    assert len(FILLERS["en"]) == len(FILLERS["fr"])
    assert [set(w) for w in SENTENCES["en"]] == [set(w) for w in SENTENCES["fr"]]
    for lang in ("en", "fr"):
        task = WordProblem("1-4", lang)
        problems = task.problems("train", 300)
        for p in [*problems, *map(task.transforms()["paraphrase"][0], problems)]:
            assert all(int(n) >= 2 for n in re.findall("[0-9]+", p.prompt))  # plural everywhere
            assert "{" not in p.prompt and "  " not in p.prompt
            if lang == "fr":  # no elision is due
                assert not re.search(r"\b(de|que|ne|le|la|en) [aeiouyhéèêà](?!\b)", p.prompt, re.IGNORECASE), p.prompt
        told = {re.sub("[0-9]+", "#", p.prompt) for p in WordProblem(1, lang).problems("train", 1000)}
        assert len(told) > 200


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_word_problem_level_is_the_number_of_operations(level: int) -> None:
    problems = WordProblem(level).problems("train", 200)
    assert {len(p.steps) for p in problems} == {level}
    assert {sign for p in problems for s in p.steps for sign in re.findall("[-+*]", s.text)} == {"+", "-", "*"}
    assert all(int(s.text.split("=")[1]) > 0 for p in problems for s in p.steps)
