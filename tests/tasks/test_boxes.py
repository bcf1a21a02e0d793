"""boxes: contents, verdicts on sets, and counterfactual pairs."""

from __future__ import annotations

from collections import Counter

import pytest
from task_tools import said

from whet.errors import WhetError
from whet.tasks.boxes import Boxes


def simulate(prompt: str) -> str:
    """The answer from the words of the prompt alone."""
    first, *changes, asked = prompt.split(". ")
    boxes = {box: [thing] for thing, box in (part.split(" in ") for part in first.split(", "))}
    for change in changes:
        if change.startswith("swap"):
            _, a, b = change.split()
            boxes[a], boxes[b] = boxes[b], boxes[a]
        else:
            thing, b = change.split(" to ")
            for held in boxes.values():
                if thing in held:
                    held.remove(thing)
            boxes[b].append(thing)
    return " ".join(boxes[asked.removeprefix("in ").removesuffix("?")]) or "nothing"


def test_boxes_answers_follow_from_the_prompt_alone() -> None:
    answers = Counter()
    for p in Boxes("1-5").problems("test", 200):
        assert simulate(p.prompt) == p.answer
        answers[len(p.answer.split()) if p.answer != "nothing" else 0] += 1
    assert answers[0] > 5 and answers[1] > 50 and answers[2] > 5


def test_boxes_by_hand() -> None:
    task = Boxes()
    p = task.build(((16, 1, 2), (0, 22, 10), (("swap", 0, 1), ("move", 2, 1)), 1), 3)
    assert p.prompt == "apple in Q, key in B, cup in C. swap Q B. cup to B. in B?"
    assert p.rationale == "swap Q B: Q key, B apple\ncup to B: C nothing, B apple cup\nB: apple cup"
    assert [s.premises for s in p.steps] == [(), (0,), (1,)]
    assert p.choices == ("key", "apple cup", "nothing")
    assert p.choice_rationales == ("key B > Q", "apple Q > B, cup C > B", "C empty")
    verdicts = {
        "cup apple": ("ok", 1.0, 1.0), "cup, apple": ("ok", 1.0, 1.0), "apple and cup": ("ok", 1.0, 1.0),
        "apple": ("wrong", 1.0, 0.5), "apple cup key": ("wrong", 2 / 3, 1.0), "apple apple cup": ("wrong", 2 / 3, 1.0),
        "nothing": ("wrong", 0.0, 0.0), "apple dragon": ("unparseable", None, None),
    }  # fmt: skip
    for text, expected in verdicts.items():
        verdict = task.verify(p, said(text))
        assert (verdict.status, verdict.parts.get("precision"), verdict.parts.get("recall")) == expected, text


@pytest.mark.parametrize("boxes", [3, 5, 7])
def test_counterfactuals_tell_the_three_variables_apart(boxes: int) -> None:
    from whet.tasks import split_of

    task = Boxes(1, boxes=boxes)
    for p in task.problems("test", 40):
        expected = []
        for variable in ("position", "object", "label"):
            base, other, answer = task.counterfactual(p, variable, seed=1)
            assert base is p
            expected.append(answer)
        assert len({p.answer, *expected}) == 4
        old, new = base.data, other.data
        assert sorted(old["boxes"]) == sorted(new["boxes"]) and not {*old["objects"]} & {*new["objects"]}
        place = new["boxes"].index(new["asked"])
        assert expected == [old["objects"][place], other.answer, old["objects"][old["boxes"].index(new["asked"])]]
        letters = tuple(ord(x) - 65 for x in new["boxes"])
        from whet.tasks.boxes import OBJECTS

        bare = (letters, tuple(map(OBJECTS.index, new["objects"])), (), place)
        assert split_of(bare) == "test"
        assert len(base.prompt.split()) == len(other.prompt.split())  # places correspond
    with pytest.raises(WhetError, match="without changes"):
        Boxes(3).counterfactual(Boxes(3).problem("test", 0))
    with pytest.raises(WhetError, match="not 'colour'"):
        task.counterfactual(p, "colour")  # type: ignore[arg-type]
