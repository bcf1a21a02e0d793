"""One row of a data set -> Problem: Whet's own shape and TRL's (https://huggingface.co/docs/trl/dataset_formats).

| row | becomes |
|---|---|
| `{prompt, answer, rationale?}` | a problem with a gold answer; the rationale's lines are its steps |
| `{messages, answer?}` | the last assistant message is the demonstration, what stands before it `messages` |
| `{prompt, completion, answer?}` | the completion is the demonstration; texts or lists of messages |
| `{prompt, chosen, rejected}`, `{chosen, rejected}` | a preference; without a prompt it is what both begin with |

`plan`, `choices`, `choice_rationales` (one for each choice), `level` and `category` may stand in every shape; all other
columns go to `Problem.data`. A demonstration is
the answer where the row has no `answer`; where it has one, the demonstration is its rationale (unless the row has
its own, or the demonstration is only the answer). A null is an absent field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from whet.errors import WhetError, shown
from whet.tasks.problem import Problem, Step

FIELDS = ("prompt", "messages", "answer", "completion", "chosen", "rejected", "rationale", "plan", "choices",
          "choice_rationales", "level", "category")  # fmt: skip
LONG = 200  # characters of a row that an error repeats
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Messages = tuple[Mapping[str, str], ...]


def problem_of(row: Any, where: str) -> Problem:
    """The problem of a parsed row, without its id and task. `where` is put before what is wrong with it."""
    if not isinstance(row, dict):
        raise WhetError(f"{where}: a row must be an object such as {{\"prompt\": ..., \"answer\": ...}}")  # fmt: skip
    row = {key: value for key, value in row.items() if value is not None}
    _refuse_other_types(row, where)
    prompt, messages, demonstration, chosen, rejected = _dialogue(row, where)
    choices = _choices(row, where)
    answer = _answer(row, choices, where)
    rationale = _text(row["rationale"], "rationale", where) if "rationale" in row else ""
    if demonstration is not None and answer is None:
        answer = demonstration
    elif demonstration is not None and not rationale and demonstration != answer:
        rationale = demonstration
    level = row.get("level", 1)
    if type(level) is not int or level < 1:
        raise WhetError(f"{where}: field 'level' must be a whole number from 1, not {shown(repr(level), LONG)}")
    return Problem(
        id="",
        prompt=prompt,
        answer=answer,
        level=level,
        steps=tuple(Step(line.strip()) for line in rationale.splitlines() if line.strip()),
        plan=_text(row["plan"], "plan", where) if "plan" in row else "",
        choices=choices,
        choice_rationales=_choice_rationales(row, choices, where),
        category=_text(row["category"], "category", where) if "category" in row else "",
        data={key: value for key, value in row.items() if key not in FIELDS},
        messages=messages,
        chosen=chosen,
        rejected=rejected,
    )


def identity(problem: Problem) -> object:
    """What makes two rows the same question: the prompt, or the conversation where it is more than one user turn."""
    turns = tuple((m["role"], m["content"]) for m in problem.messages)
    return problem.prompt if not turns or turns == (("user", problem.prompt),) else turns


# -- prompt and responses --------------------------------------------------------------------------------------------
def _dialogue(row: dict[str, Any], where: str) -> tuple[str, Messages, str | None, str | None, str | None]:
    """(prompt, messages before the answer, demonstration, chosen, rejected)."""
    if "messages" in row:
        turns = _messages(row["messages"], "messages", where)
        before, last = (turns[:-1], turns[-1]["content"]) if turns[-1]["role"] == "assistant" else (turns, None)
        return _question(before, "messages", where), before, last, None, None
    if "chosen" in row or "rejected" in row:
        return _preference(row, where)
    if "prompt" not in row:
        fields = shown(", ".join(map(str, row)), LONG) or "none"
        raise WhetError(f"{where}: field 'prompt' is missing (fields: {fields}); rename the one that asks the question")
    messages: Messages = ()
    if isinstance(row["prompt"], list):
        messages = _messages(row["prompt"], "prompt", where)
    demonstration = None
    if isinstance(row.get("completion"), list):
        if not messages:
            messages = ({"role": "user", "content": _text(row["prompt"], "prompt", where)},)
        turns = _messages(row["completion"], "completion", where)
        if turns[-1]["role"] != "assistant":
            raise WhetError(f"{where}: field 'completion' must end with an assistant message")
        messages, demonstration = (*messages, *turns[:-1]), turns[-1]["content"]
    elif "completion" in row:
        demonstration = _text(row["completion"], "completion", where)
    prompt = _question(messages, "prompt", where) if messages else _text(row["prompt"], "prompt", where)
    return prompt, messages, demonstration, None, None


def _preference(row: dict[str, Any], where: str) -> tuple[str, Messages, str | None, str | None, str | None]:
    for name in ("chosen", "rejected"):
        if name not in row:
            raise WhetError(f"{where}: field '{name}' is missing; a preference needs both 'chosen' and 'rejected'")
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise WhetError(f"{where}: fields 'chosen' and 'rejected' must both be texts or both lists of messages")
    if chosen == rejected:
        raise WhetError(f"{where}: fields 'chosen' and 'rejected' are equal; drop the row")
    if not isinstance(chosen, list):
        good, bad = _text(chosen, "chosen", where), _text(rejected, "rejected", where)
        if isinstance(prompt, list):
            messages = _messages(prompt, "prompt", where)
            return _question(messages, "prompt", where), messages, None, good, bad
        if prompt is None:
            # up to the last white space of what both begin with: TRL cuts "blue" and "black" behind "bl"
            common = good[: _shared(good, bad)]
            prompt = common[: len(common) - len(re.split(r"\s", common)[-1])]
            good, bad = good[len(prompt) :], bad[len(prompt) :]
            if not prompt.strip():
                raise WhetError(f"{where}: field 'prompt' is missing and 'chosen' and 'rejected' begin differently")
        return _text(prompt, "prompt", where), (), None, good, bad
    good_turns, bad_turns = _messages(chosen, "chosen", where), _messages(rejected, "rejected", where)
    if isinstance(prompt, list):
        messages = _messages(prompt, "prompt", where)
    else:  # a text beside conversations repeats their first turn, as in TRL
        shared = _shared(good_turns, bad_turns)
        messages, good_turns, bad_turns = good_turns[:shared], good_turns[shared:], bad_turns[shared:]
        if not messages and prompt is not None:
            messages = ({"role": "user", "content": _text(prompt, "prompt", where)},)
    for name, turns in (("chosen", good_turns), ("rejected", bad_turns)):
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            raise WhetError(f"{where}: field '{name}' must be one assistant message behind the prompt")
    return _question(messages, "prompt", where), messages, None, good_turns[0]["content"], bad_turns[0]["content"]


def _shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items from the start are equal."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _question(messages: Messages, field: str, where: str) -> str:
    """The last user turn."""
    for message in reversed(messages):
        if message["role"] == "user":
            return message["content"]
    raise WhetError(f"{where}: field '{field}' has no user message before the answer")


def _messages(value: Any, field: str, where: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise WhetError(f"{where}: field '{field}' must be a list of {{role, content}} messages, not {_kind(value)}")
    turns: list[Mapping[str, str]] = []
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise WhetError(f"{where}: message {i + 1} of field '{field}' must be an object with a role and a content")
        content = message.get("content")
        if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            content = "".join(str(part.get("text", "")) for part in content)
        turns.append({"role": message["role"], "content": _text(content, f"{field}[{i}].content", where)})
    return tuple(turns)


# -- the other fields ------------------------------------------------------------------------------------------------
def _choices(row: dict[str, Any], where: str) -> tuple[str, ...]:
    if "choices" not in row:
        return ()
    value = row["choices"]
    if not isinstance(value, list) or len(value) < 2:
        raise WhetError(f"{where}: field 'choices' must be a list of two or more texts, not {_kind(value)}")
    choices = tuple(_scalar(c, "choices", where) for c in value)
    if len(set(choices)) < len(choices):
        raise WhetError(f"{where}: field 'choices' holds the same choice twice")
    return choices


def _choice_rationales(row: dict[str, Any], choices: tuple[str, ...], where: str) -> tuple[str, ...]:
    if "choice_rationales" not in row:
        return ()
    value = row["choice_rationales"]
    if not isinstance(value, list) or len(value) != len(choices):
        told = f"{len(value)} texts" if isinstance(value, list) else _kind(value)
        raise WhetError(f"{where}: field 'choice_rationales' must be a list of one text for each of the {len(choices)} "
                        f"choices, not {told}")  # fmt: skip
    return tuple(_text(text, "choice_rationales", where) for text in value)


def _answer(row: dict[str, Any], choices: tuple[str, ...], where: str) -> str | None:
    """The answer as text; with choices one of them, given by its text, its letter or (a number) its index from 0."""
    if "answer" not in row:
        return None
    answer = _scalar(row["answer"], "answer", where)
    if not choices or answer in choices:
        return answer
    by_number = type(row["answer"]) is int
    index = row["answer"] if by_number else LETTERS.find(answer) if len(answer) == 1 else -1
    if not 0 <= index < len(choices):
        raise WhetError(f"{where}: field 'answer' is '{shown(answer, LONG)}', none of the {len(choices)} choices; "
                        "give its text, its letter or its index from 0")  # fmt: skip
    return choices[index]


def _scalar(value: Any, field: str, where: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    return _text(value, field, where, "a text or a number")


def _text(value: Any, field: str, where: str, wanted: str = "a text") -> str:
    if not isinstance(value, str):
        raise WhetError(f"{where}: field '{field}' must be {wanted}, not {_kind(value)}")
    if not value.strip():
        raise WhetError(f"{where}: field '{field}' is empty; fill it in or drop the row")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise WhetError(
            f"{where}: field '{field}' holds half of a character (a lone \\ud800 to \\udfff); mend or drop the row"
        )
    return value.strip()


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true/false", type(None): "null"}
    return "an empty list" if value == [] else names.get(type(value)) or f"the number {shown(str(value), LONG)}"


def _refuse_other_types(row: dict[str, Any], where: str) -> None:
    """TRL's types that hold no question with a right answer."""
    if "label" in row and "completion" in row:
        raise WhetError(f"{where}: field 'label' makes this an unpaired preference, which is not read; give rows with "
                        "'chosen' and 'rejected', or keep the good completions and drop the column")  # fmt: skip
    if "completions" in row and "labels" in row:
        raise WhetError(f"{where}: field 'completions' with 'labels' is stepwise supervision, which is not read; "
                        "give 'prompt' and 'rationale'")  # fmt: skip
    if "text" in row and not {"prompt", "messages", "chosen"} & row.keys():
        raise WhetError(f"{where}: field 'text' is running text without a question; give 'prompt' and 'completion'")
