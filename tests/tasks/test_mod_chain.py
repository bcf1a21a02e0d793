"""mod-chain: reduction, hard spans, and answers that follow from the prompt."""

from __future__ import annotations

import re

from task_tools import said

from whet.tasks.mod_chain import ModChain
from whet.tasks.problem import Problem

CHAIN = {
    "modulus": 7,
    "assignments": {"a": "3", "b": "a*4+2", "c": "b-a"},
    "given": "a",
    "solve": ("b", "c"),
    "wording": 0,
    "filler": 0,
}


def test_mod_chain_by_hand() -> None:
    task = ModChain()
    p = task.word(CHAIN, 2)
    assert p.prompt == "mod 7. a=3. b=a*4+2. c=b-a. c?"
    assert p.rationale == "b=3*4+2=0\nc=0-3=4" and p.answer == "4"
    assert p.data["hard"] == ((8, 9), (16, 17))
    assert [s.premises for s in p.steps] == [(), (0,)]
    assert p.plan == "find b, then c"
    lines = {
        "b=3*4+2=0\nc=0-3=4": ("", ""),
        "b=3*4+2=1\nc=1-3=5": ("arithmetic", ""),
        "b=3*4+2=14\nc=14-3=4": ("arithmetic", ""),  # not reduced
        "b=3*5+2=3\nc=3-3=0": ("copy", ""),
        "b=3*4-2=3\nc=3-3=0": ("operator", ""),
        "c=2-3=6": ("skip", None),
        "b=3*4+2=0\nc=0-3=4\nd=1+1=2": ("", "", "format"),
    }
    for rationale, labels in lines.items():
        reasons = [c.reason.partition(":")[0] for c in task.check(p, said("4", rationale))[:-1]]
        assert [r for r in reasons if r != "no such step"] == [x for x in labels if x is not None], rationale


def test_mod_chain_hard_spans_are_the_results_and_splits_ignore_names() -> None:
    task = ModChain("3-5")
    for p in task.problems("train", 100):
        for (start, end), step in zip(p.data["hard"], p.steps, strict=True):
            assert p.rationale[start:end] == step.text.rpartition("=")[2]
    level = ModChain(1)

    def bare(p: Problem) -> tuple[str, ...]:
        names = {x: str(i) for i, x in enumerate(p.data["assignments"])}
        return tuple(re.sub("[a-z]", lambda m: names[m[0]] + "v", e) for e in p.data["assignments"].values())

    assert not {bare(p) for p in level.problems("train", 1500)} & {bare(p) for p in level.problems("test", 300)}


def test_mod_chain_answers_follow_from_the_prompt_alone() -> None:
    for p in ModChain("1-5").problems("test", 100):
        modulus, *assignments, asked = re.findall(r"mod (\d+)|([a-z])=([^ ]+)\.|([a-z])\?", p.prompt)
        todo = {name: text for _, name, text, _ in assignments}
        values: dict[str, int] = {}
        while todo:  # in whatever order works
            name = next(x for x, e in todo.items() if {*re.findall("[a-z]", e)} <= values.keys())
            values[name] = eval(todo.pop(name), {}, dict(values)) % int(modulus[0])
        assert p.answer == str(values[asked[3]])
