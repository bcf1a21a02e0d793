"""Distilled traces: so many prompts, so many responses, and whose."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tiny import tiny_policy
from trained import Scripted
from whet.errors import WhetError
from whet.records import Row
from whet.sources import Distilled, Scope, Uniform
from whet.tasks import Task, get_task


def made(collect: Distilled, task: Task, limit: int = 0) -> tuple[list[str], list[str]]:
    """Prompts and responses, as text, of what is learnt."""
    policy = tiny_policy(style="tags")
    problems = Uniform(limit=limit)
    problems.bind(task, 0)
    collect.prepare(problems, policy, Scope(task, 0))

    def text(row: Row, learnt: bool) -> str:
        return policy.format.decode([i for s in row["response"].segments if s.learn == learnt for i in s.ids])

    return [text(row, False) for row in collect.stored], [text(row, True) for row in collect.stored]


def file(folder: Path, prompts: int = 60, traces: int = 3) -> Task:
    path = folder / "rows.jsonl"
    rows = [{"prompt": f"what is {p}", "answer": str(p), "rationale": f"{'so ' * (1 + p % 4)}way {t}"}
            for t in range(traces) for p in range(prompts)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return get_task(str(path))


def test_the_two_axes_of_a_file(tmp_path: Path) -> None:
    task = file(tmp_path)
    for prompts, responses in ((12, 1), (4, 3), (6, 2)):
        collect = Distilled(prompts, responses)
        asked, told = made(collect, task)
        assert len(set(asked)) == prompts and set(Counter(asked).values()) == {responses}
        assert len(set(told)) == prompts * responses
        assert collect.counts == {"prompts": prompts, "dropped, short": 0, "traces": prompts * responses}
    everything, _ = made(Distilled(0, 3), task)
    assert len(everything) == len(task.problems("train"))
    with pytest.raises(WhetError, match=r"4 responses .* at most 3; name a teacher"):
        made(Distilled(4, 4), task)


def test_prompts_with_short_traces_are_dropped(tmp_path: Path) -> None:
    _, told = made(Distilled(0, 1, longer=0.15), file(tmp_path))
    assert told and all("so so so so" in text for text in told)


def test_a_teacher_gives_what_is_missing() -> None:
    """Right, finished and different answers, behind the task's own."""
    by_id = {p.id: p for p in get_task("parity").problems("train", 6)}

    def answer(problem: str, prompt: str) -> list[str]:
        gold = by_id[problem].answer
        return [
            f"look|{gold}",
            f"look|{gold}",
            f"wrong|{1 - int(gold or 0)}",
            f"cut|{gold}…",
            f"see|{gold}",
            f"more|{gold}",
        ]

    _, told = made(Distilled(6, 3, teacher=Scripted(answer)), get_task("parity"))  # type: ignore[arg-type]
    assert len(told) == 18
    ways = [sum(way in text for text in told) for way in ("look", "see", "wrong", "cut", "more")]
    assert ways == [6, 6, 0, 0, 0]


def test_what_cannot_be_distilled() -> None:
    with pytest.raises(WhetError, match="has no end: say how many of its prompts"):
        made(Distilled(), get_task("parity"))
    with pytest.raises(WhetError, match="at least one response"):
        Distilled(4, 0)
    assert Distilled(4).needs == {"demonstrations"} and Distilled(4, teacher="x").needs == {
        "demonstrations",
        "verifier",
    }
