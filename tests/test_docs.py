"""The Python blocks of docs/add-a-method.md run as they stand there."""

from __future__ import annotations

import math
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import tiny_policy
from whet import study
from whet.objectives import Context, View
from whet.recipes.recipe import _REGISTRY
from whet.records import Row, Sample, Segment
from whet.tasks import Verdict, get_task
from whet.training.fit import Fit

PAGE = (Path(__file__).parents[1] / "docs" / "add-a-method.md").read_text()
BLOCKS = re.findall(r"^```python(?: file=(\w+))?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILES = {name: code for name, code in BLOCKS if name}
SNIPPETS = "\n".join(code for name, code in BLOCKS if not name)


@pytest.fixture(autouse=True)
def own_studies(monkeypatch):
    """The page's study is registered in no other test."""
    monkeypatch.setattr(study, "_REGISTRY", dict(study._REGISTRY))


def load(monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> dict[str, Any]:
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(code, f"add-a-method.md: {name}", "exec"), module.__dict__)
    return vars(module)


def test_the_worked_example_and_its_tests(monkeypatch):
    try:
        load(monkeypatch, "whet.recipes.supervised.focal", FILES["focal"])
        tests = load(monkeypatch, "test_focal", FILES["test_focal"])
        ran = [test() for name, test in list(tests.items()) if name.startswith("test_")]
    finally:
        _REGISTRY.pop("focal", None)
    assert len(ran) == 4


def test_the_other_parts_train_together(monkeypatch):
    """Two groups a step; the first is half right, the second too easy. One answer could not be judged."""
    parts = load(monkeypatch, "parts", SNIPPETS)
    policy, task = tiny_policy(), get_task("chain-sum:level=1")
    verdicts = iter([Verdict(v, "ok" if v else "wrong") for v in (1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0)] * 2)
    monkeypatch.setattr(type(task), "verify", lambda *_: next(verdicts))
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    fit = Fit(policy, parts["together"].stages, task)
    assert fit.run().finished
    moved = {n for n, p in policy.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if "embed_tokens" not in n}
    assert fit.stages[0].problems.state_dict() == {"cursor": 8, "draws": 2}
    assert policy.meter.optimizer_steps == 2


def test_the_study_is_judged_by_its_own_words(monkeypatch):
    made = load(monkeypatch, "parts", SNIPPETS)["focal_study"]
    assert made.seeds >= study.LEAST_SEEDS and made.criterion.startswith("Reproduced if focal's greedy test accuracy")
    assert set(made.controls) < set(made.arms)


def test_the_median_leaves_out_what_could_not_be_judged(monkeypatch):
    rows = [_row([5], [8], reward) for reward in (1.0, 0.0, 0.0, math.nan)]
    load(monkeypatch, "parts", SNIPPETS)["GroupMedian"]()(rows)
    assert [row.numbers["advantage"] for row in rows] == [1.0, 0.0, 0.0, 0.0]


def test_the_view_hides_the_question_only(monkeypatch):
    view = load(monkeypatch, "parts", SNIPPETS)["Blank"](3)
    policy = tiny_policy("gpt2", dtype=torch.float64)

    def logprobs(question: list[int], view: View | None = None) -> torch.Tensor:
        return Context([_row(question, [8, 9])], {"policy": policy}).forward("response", view=view).logprobs

    assert torch.equal(logprobs([5, 6], view), logprobs([3, 3]))
    assert not torch.equal(logprobs([5, 6]), logprobs([3, 3]))


def _row(question: list[int], answer: list[int], reward: float = 0.0) -> Row:
    segments = [Segment("question", question), Segment("answer", answer, learn=True)]
    return Row({"response": Sample(segments, group_id="g")}, {"reward": reward})
