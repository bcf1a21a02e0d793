"""shots: examples before a question, the same ones with and without their rationales."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiny import tiny_policy
from whet.errors import WhetError
from whet.tasks import Response, get_task
from whet.tasks.shots import Shots

SPEC = "logic:level=1"


def both(spec: str = SPEC, n: int = 2, draw: int = 0, room: int = 768) -> tuple[Shots, Shots]:
    plain, explained = (Shots(get_task(spec), n, explain, draw, room) for explain in (False, True))
    return plain, explained


def test_explained_and_plain_prompts_show_the_same_examples() -> None:
    plain, explained = both()
    for a, b in zip(plain.problems("test", 30), explained.problems("test", 30), strict=True):
        assert a.data["examples"] == b.data["examples"] and len(a.data["examples"]) == 2
        assert [m.get("content") for m in a.messages] == [m.get("content") for m in b.messages]
        assert [m.get("answer") for m in a.messages] == [m.get("answer") for m in b.messages]
        assert all("rationale" not in m for m in a.messages) and sum("rationale" in m for m in b.messages) == 2
        assert a.messages[-1] == {"role": "user", "content": a.prompt}


def test_examples_are_of_train_never_the_question_and_another_draw_has_others() -> None:
    task = get_task(SPEC)
    train = {p.prompt for split in ("validation", "test") for p in task.problems(split, 300)}  # type: ignore[arg-type]
    draws = [Shots(task, draw=draw).problems("test", 30) for draw in (0, 0, 1)]
    for p in draws[0]:
        shown = [m["content"] for m in p.messages[:-1] if m["role"] == "user"]
        assert p.prompt not in shown and not train & set(shown)
        assert all("/train/" in i for i in p.data["examples"])
    assert draws[0] == draws[1]
    assert [p.data["examples"] for p in draws[0]] != [p.data["examples"] for p in draws[2]]


def test_whole_examples_are_dropped_where_there_is_no_room() -> None:
    policy = tiny_policy(style="tags")
    for room, left in ((2000, {3}), (260, {0, 1, 2}), (40, {0})):
        plain, explained = both(n=3, room=room)
        pairs = list(zip(plain.problems("test", 20), explained.problems("test", 20), strict=True))
        assert {a.data["shots"] for a, _ in pairs} <= left
        for a, b in pairs:
            assert a.data["examples"] == b.data["examples"]
            size = len(policy.format.prompt(b)[0].ids)
            assert size <= room + 12 * (b.data["shots"] + 1) or not b.data["shots"]  # tags of each turn


@pytest.mark.parametrize("style", ["tags", "plain", "chat"])
def test_examples_read_as_responses_do(style: str) -> None:
    policy = tiny_policy(style=style)
    _, explained = both()
    problem = explained.problems("test", 1)[0]
    text = policy.format.decode(policy.format.prompt(problem)[0].ids)
    for turn in problem.messages[:-1]:
        if turn["role"] == "assistant":
            said = policy.format.response(turn["rationale"], turn["answer"], end=False)
            assert "".join(policy.format.decode(s.ids) for s in said) in text


def test_it_is_judged_as_the_task_and_its_spec_makes_it_again() -> None:
    made = get_task("shots:n=3:explain=1:draw=2|word-problem:level=2:lang=fr")
    assert made.spec() == "shots:n=3:explain=1:draw=2|word-problem:level=2,lang=fr"
    assert get_task(made.spec()).problems("test", 3) == made.problems("test", 3)
    for problem, bare in zip(
        made.problems("test", 5), get_task("word-problem:level=2,lang=fr").problems("test", 5), strict=True
    ):
        assert problem.prompt == bare.prompt and problem.id == bare.id
        assert made.verify(problem, Response(problem.answer or "", problem.answer)).value == 1.0
    assert made.provides() == get_task("word-problem").provides()
    assert get_task("shots").spec() == "shots:n=2:explain=0:draw=0|chain-sum"


def test_a_file_gives_its_own_examples(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{n}?", "answer": str(n)}) + "\n" for n in range(60)))
    made = get_task(f"shots:n=2|{path}")
    for problem in made.problems("test"):
        shown = [m["content"] for m in problem.messages[:-1] if m["role"] == "user"]
        assert len(shown) == 2 and problem.prompt not in shown
    with pytest.raises(WhetError, match="has no rationales to show"):
        get_task(f"shots:explain=1|{path}")


@pytest.mark.parametrize("spec", ["shots:n=2", "shots:n=x|sort", "shots:k=2|sort", "shots:n=0|sort"])
def test_a_mistaken_spec_is_refused(spec: str) -> None:
    with pytest.raises(WhetError, match=r"shots:n=2:explain=1:draw=0|n is at least 1"):
        get_task(spec)
