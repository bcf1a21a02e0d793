"""Rewards: parts, combinators, TRL functions, DAPO's punishment of length, and the audit."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from whet.errors import WhetError
from whet.rewards import (
    Attempt,
    Reward,
    accuracy,
    audit,
    clip,
    each,
    exploits,
    format_bonus,
    from_function,
    gate,
    load_reward,
    overlong,
    route,
    soft_overlong,
    total,
)  # fmt: skip
from whet.tasks import Problem, Response, Task, Verdict
from whet.tasks.verify import choice, exact, number

NAN = float("nan")
PROBLEM = Problem("t/1", "5+7?", "12", task="sums", data={"source": ["a"], "weight": 2})


def attempt(
    value: float = 1.0, *, text: str = "12", tokens: int = 5, problem: Problem = PROBLEM, **response
) -> Attempt:
    status = "error" if math.isnan(value) else "ok" if value == 1.0 else "wrong"
    return Attempt(problem, Response(text, **{"answer": text, **response}), Verdict(value, status), tokens, False)


GROUP = [attempt(1.0, tokens=10), attempt(0.0, tokens=20), attempt(NAN, tokens=30)]


def totals(reward: Reward, group=GROUP) -> list[float]:
    return [total(parts) for parts in reward(group)]


# -- parts -----------------------------------------------------------------------------------------------------------
def test_accuracy_is_the_verdict_and_nan_where_there_is_none():
    assert accuracy()(GROUP[:2]) == [{"accuracy": 1.0}, {"accuracy": 0.0}]
    assert math.isnan(totals(accuracy())[2])


def test_format_bonus_needs_a_cut_out_answer_and_an_end():
    group = [
        attempt(text="<answer>12</answer>", answer="12"),
        attempt(text="12"),
        attempt(text="12", answer=None),
        attempt(text="<answer>12</answer>", answer="12", ended=False),
    ]
    assert totals(format_bonus(), group) == [1.0, 0.0, 0.0, 0.0]


def test_a_task_that_judges_its_form_decides_the_bonus():
    one = attempt()
    one.verdict = Verdict(0.0, "wrong", {"format": 0.5})
    assert format_bonus()([one]) == [{"format": 0.5}]


def test_sums_and_weights():
    length = each("length", lambda a: a.tokens)
    reward = 2 * accuracy() + length * 0.1 + 0.5 * length
    parts = reward(GROUP[:2])
    assert parts == [{"accuracy": 2.0, "length": pytest.approx(6.0)}, {"accuracy": 0.0, "length": pytest.approx(12.0)}]
    assert totals(reward)[0] == pytest.approx(8.0)
    assert math.isnan(totals(reward)[2])
    assert total({}) == 0.0


def test_gate_pays_where_it_is_open():
    length = each("length", lambda a: a.tokens)
    assert gate(accuracy(), length)(GROUP[:2]) == [{"length": 10.0}, {"length": 0.0}]
    assert math.isnan(totals(gate(accuracy(), length))[2])
    assert totals(gate(lambda a: a.tokens > 15, length)) == [0.0, 20.0, 30.0]
    assert totals(gate(lambda a: False, accuracy()), GROUP) == [0.0, 0.0, 0.0]  # shut: its NaN is not paid either


def test_clip_keeps_the_sum_within_bounds_and_the_parts():
    reward = clip(each("length", lambda a: a.tokens), 15, 25)
    assert reward(GROUP) == [{"length": 10, "clip": 5}, {"length": 20, "clip": 0}, {"length": 30, "clip": -5}]
    assert totals(reward) == [15, 20, 25]
    assert totals(clip(reward, 16, 17)) == [16, 17, 17]
    assert math.isnan(totals(clip(accuracy(), 0, 1))[2])
    with pytest.raises(WhetError, match="low < high"):
        clip(accuracy(), 1, 0)


def test_route_shows_each_reward_the_whole_group():
    sizes = each("one", lambda a: 1.0)

    class Size(Reward):
        def __call__(self, group):
            return [{"size": float(len(group))} for _ in group]

    reward = route(lambda a: "short" if a.tokens < 15 else "long", {"short": sizes, "long": Size()})
    assert reward(GROUP) == [{"one": 1.0}, {"size": 3.0}, {"size": 3.0}]
    with pytest.raises(WhetError, match="unknown reward route 'sums': did you mean 'sum'"):
        route(lambda a: a.problem.task, {"sum": sizes})(GROUP)


class Count(Reward):
    """Counts the groups it has seen."""

    def __init__(self):
        self.seen = 0

    def __call__(self, group):
        self.seen += 1
        return [{"seen": float(self.seen)} for _ in group]

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def test_the_state_of_nested_rewards_is_restored():
    def make() -> Reward:
        return accuracy() + 0.5 * gate(accuracy(), clip(route(lambda a: "x", {"x": Count()}), 0, 9))

    first, second = make(), make()
    first(GROUP)
    first(GROUP)
    second.load_state_dict(first.state_dict())
    assert second(GROUP[:1]) == first(GROUP[:1]) == [{"accuracy": 1.0, "seen": 1.5, "clip": 0.0}]
    assert accuracy().state_dict() == {}
    with pytest.raises(WhetError, match="another reward"):
        accuracy().load_state_dict(first.state_dict())


# -- TRL functions ---------------------------------------------------------------------------------------------------
def test_a_trl_function_gets_columns_as_lists():
    got = {}

    def length(prompts, completions, **columns):
        got.update(columns, prompts=prompts, completions=completions)
        return [len(c) / 2 for c in completions]

    group = [attempt(text="12"), attempt(text="1234")]
    assert from_function(length)(group) == [{"length": 1.0}, {"length": 2.0}]
    assert got["prompts"] == ["5+7?", "5+7?"]
    assert got["completions"] == ["12", "1234"]
    assert got["answer"] == ["12", "12"]
    assert got["weight"] == [2, 2]
    assert got["source"] == [["a"], ["a"]]
    assert "completion_ids" not in got


def test_a_trl_function_without_kwargs_gets_only_what_it_names():
    assert totals(from_function(lambda completions, weight: [float(w) for w in weight])) == [2.0] * 3
    assert totals(from_function(lambda completions, trainer_state=None: [1.0] * len(completions))) == [1.0] * 3
    with pytest.raises(WhetError, match="asks for trainer_state"):
        from_function(lambda completions, trainer_state: [1.0])(GROUP)


def test_conversations_are_passed_as_messages():
    chat = Problem("c/1", "hi", "x", messages=({"role": "system", "content": "s"}, {"role": "user", "content": "hi"}))

    def f(prompts, completions):
        assert prompts == [[{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]]
        return [float(c[0]["content"] == "yo" and c[0]["role"] == "assistant" and len(c) == 1) for c in completions]

    assert from_function(f, "chat")([attempt(text="yo", problem=chat)]) == [{"chat": 1.0}]


def test_completion_ids_come_from_the_rows():
    from whet.records import Row, Sample, Segment

    one = attempt()
    sample = Sample(
        [Segment("question", [1, 2]), Segment("response", [3, 4], learn=True), Segment("eos", [0], learn=True)]
    )
    one.row = Row({"response": sample})
    assert totals(
        from_function(lambda completions, completion_ids: [float(sum(i)) for i in completion_ids]), [one]
    ) == [7.0]
    with pytest.raises(WhetError, match="asks for completion_ids"):
        from_function(lambda completions, completion_ids: [1.0])(GROUP)


def test_none_is_nan_and_async_functions_are_awaited():
    async def f(completions, **kwargs):
        return [None, 0.5, 1]

    values = totals(from_function(f))
    assert math.isnan(values[0])
    assert values[1:] == [0.5, 1.0]


def test_a_trl_function_that_fails_names_itself_and_the_problem():
    def boom(completions):
        raise KeyError("x")

    with pytest.raises(WhetError, match="'boom' raised KeyError on problem 't/1'"):
        from_function(boom)(GROUP)
    with pytest.raises(WhetError, match="returned 1 values for 3 completions"):
        from_function(lambda completions: [1.0])(GROUP)


def test_load_reward(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from whet.rewards import accuracy\n"
        "def trl(completions, **kwargs): return [0.5 for _ in completions]\n"
        "def grouped(group): return [{'rank': float(i)} for i, _ in enumerate(group)]\n"
        "ready = 2 * accuracy()\n"
        "def neither(x): return x\n"
    )
    assert load_reward(f"{path}:trl")(GROUP) == [{"trl": 0.5}] * 3
    assert load_reward(f"{path}:grouped")(GROUP)[2] == {"rank": 2.0}
    assert load_reward(f"{path}:ready")(GROUP[:1]) == [{"accuracy": 2.0}]
    with pytest.raises(WhetError, match="is no reward"):
        load_reward(f"{path}:neither")


# -- length ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("length", "value"), [(0, 0), (16384, 0), (16385, -1 / 4096), (18432, -0.5), (20480, -1), (20481, -1), (10**6, -1)]
)
def test_dapo_soft_punishment(length: int, value: float):
    assert soft_overlong(length) == value


def test_overlong_reads_the_tokens():
    assert overlong(10, 20)([attempt(tokens=15)]) == [{"overlong": -0.5}]
    limited = attempt(tokens=18)
    limited.budget = 20
    assert overlong(4)([limited]) == [{"overlong": -0.5}]
    with pytest.raises(WhetError, match="no generation budget"):
        overlong(4)([attempt()])
    for wrong in ((0, 10), (11, 10)):
        with pytest.raises(WhetError, match="0 < buffer <= max_length"):
            overlong(*wrong)


# -- the audit -------------------------------------------------------------------------------------------------------
class Judged(Task):
    """Fixed problems judged by a function."""

    name = "judged"

    def __init__(self, judge, problems):
        self.judge, self.rows = judge, problems

    def problems(self, split, n=None, *, seed=0, start=0):
        return self.rows[start:][:n]

    def verify(self, problem, response):
        return self.judge(problem, response)


SUMS = [Problem(f"judged/{i}", f"What is {i}+{i}?", str(2 * i)) for i in range(1, 9)]
CHOICES = [Problem(f"judged/{i}", "red, green or blue?", c, choices=("red", "green", "blue"))
           for i, c in enumerate(["red", "blue", "green", "blue"])]  # fmt: skip


@pytest.mark.parametrize(
    ("judge", "problems"), [(number, SUMS), (exact, SUMS), (choice, CHOICES)], ids=["number", "exact", "choice"]
)
def test_the_built_in_verifiers_pass_their_audit(judge, problems):
    rows = audit(Judged(judge, problems))
    assert exploits(rows) == []
    gold = rows[0]
    assert (gold.attack, gold.n, gold.mean, gold.statuses) == ("gold", len(problems), 1.0, {"ok": len(problems)})
    tried = {row.attack for row in rows}
    assert {"empty", "praise", "huge number", "prompt echoed", "gold of another item", "gold among others"} <= tried
    assert ("all options" in tried) == bool(problems[0].choices)


def contains(problem: Problem, response: Response) -> Verdict:
    """A substring match: it pays for any text that holds the gold answer."""
    return Verdict(float(str(problem.answer) in response.text), "ok")


def contained(problem: Problem, response: Response) -> Verdict:
    """The other way round: an empty answer is a part of everything."""
    return Verdict(float(response.text.strip() in str(problem.answer)), "ok")


def test_the_audit_finds_substring_matches():
    found = {row.attack: row.mean for row in exploits(audit(Judged(contains, SUMS)))}
    assert found["gold or another"] == found["others, then gold"] == found["denied gold"] == 1.0
    assert "empty" not in found
    found = {row.attack: row.mean for row in exploits(audit(Judged(contained, SUMS)))}
    assert found["empty"] == found["blank"] == 1.0


def test_the_audit_finds_a_verifier_that_always_pays():
    rows = audit(Judged(lambda p, r: Verdict(1.0, "ok"), SUMS))
    assert len(exploits(rows)) == len(rows) - 1


def test_a_verifier_that_breaks_on_an_attack_is_a_finding():
    def fragile(problem, response):
        return Verdict(float(int(response.text) == int(problem.answer)), "ok")

    rows = {row.attack: row for row in audit(Judged(fragile, SUMS), n=4)}
    assert rows["empty"].n == 4
    assert rows["empty"].statuses == {"error": 4}
    assert math.isnan(rows["empty"].mean)
    assert "raised ValueError" in rows["empty"].example
    assert rows["gold"].mean == 1.0


def test_gold_of_another_item_is_never_equal_in_value():
    problems = [Problem("a", "?", "2"), Problem("b", "?", "2.0"), Problem("c", "?", "3")]
    rows = {row.attack: row for row in audit(Judged(number, problems))}
    assert rows["gold of another item"].mean == 0.0
    alone = {row.attack for row in audit(Judged(number, problems[:2]))}
    assert "gold of another item" not in alone


def test_a_prompt_that_holds_its_answer_is_not_echoed():
    rows = {
        row.attack: row for row in audit(Judged(number, [Problem("a", "Say 7.", "7"), Problem("b", "Say seven.", "7")]))
    }
    assert rows["prompt echoed"].n == 1


def test_rewards_verifiers_and_files_import_no_torch():
    code = "import sys, whet.rewards, whet.tasks.files, whet.tasks.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
