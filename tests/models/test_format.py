"""Format: a problem to segments and token ids back to segments, in three styles; ids in are ids out."""

from __future__ import annotations

import random
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tiny import tiny_tokenizer
from whet.errors import WhetError
from whet.models.base import CHAT_TEMPLATE, train_tokenizer
from whet.models.format import Format
from whet.records import Sample, Segment
from whet.tasks import Problem, Step, get_task

STYLES = ("tags", "chat", "plain")
PROBLEM = Problem("p/1", "add 12 and 30", "42", steps=(Step("12+30=42"), Step("so 42")))


def formats() -> list[Format]:
    return [Format(tiny_tokenizer(style), fallback=fallback) for style in STYLES for fallback in ("raw", "missing")]


def sampled(form: Format, text: str, end: bool = True) -> Sample:
    """A sample of these tokens, as a sampler hands it over."""
    ids = form.encode(text) + ([form.eos_id] if end else [])
    return Sample(form.prompt(PROBLEM) + form.cut(ids), "p/1")


# -- round trips -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", formats(), ids=lambda f: f"{f.style}-{f.fallback}")
@pytest.mark.parametrize("rationale", [True, False])
def test_a_demonstration_reads_as_the_gold_answer(form: Format, rationale: bool) -> None:
    """In every style and with every fallback, and as a sample of its own token ids."""
    for answer in ("42", "a b\nc", "x=1/2, y"):
        problem = Problem("p", "q", answer, steps=PROBLEM.steps)
        sample = form.demonstration(problem, rationale=rationale)
        assert [s.learn for s in sample.segments] == [False] + [True] * (len(sample.segments) - 1)
        again = Sample(form.prompt(problem) + form.cut([*sample.response, form.eos_id]))
        for read in (form.read(sample), form.read(again)):
            assert (read.answer, read.rationale) == (answer, problem.rationale if rationale else "")
            assert read.ended
        assert again.ids == sample.ids
        kinds = {s.kind for s in again.segments} - {"response"}
        assert kinds <= {s.kind for s in sample.segments}


@pytest.mark.parametrize("style", STYLES)
def test_every_task_reads_its_own_gold_answers(style: str) -> None:
    form = Format(tiny_tokenizer(style))
    for name in ("chain-sum", "sort", "word-problem"):
        task = get_task(name)
        for problem in task.problems("train", 5):
            for rationale in (True, False):
                read = form.read(form.demonstration(problem, rationale=rationale))
                assert task.verify(problem, read).value == 1.0


@pytest.mark.parametrize("style", STYLES)
def test_ids_in_are_ids_out(style: str) -> None:
    """Cutting never tokenises again: any ids, also such as no text would give, come back in order."""
    form = Format(tiny_tokenizer(style))
    draw = random.Random(1)
    for _ in range(200):
        ids = [draw.randrange(2, 300) for _ in range(draw.randrange(12))]
        ids += [1] if draw.random() < 0.5 else []
        segments = form.cut(ids)
        assert [i for s in segments for i in s.ids] == ids
        assert all(s.learn and s.sampled and s.ids for s in segments)
        assert (bool(segments) and segments[-1].kind == "eos") == (bool(ids) and ids[-1] == 1)
        form.read(Sample([Segment("question", [5]), *segments]))


def test_the_end_is_a_segment_that_can_be_absent() -> None:
    for style in STYLES:
        form = Format(tiny_tokenizer(style))
        assert sampled(form, "Answer: 7").ended and form.read(sampled(form, "Answer: 7")).ended
        cut = sampled(form, "Answer: 7", end=False)
        assert not cut.ended and not form.read(cut).ended and cut.segments[-1].kind != "eos"
        assert form.cut([]) == []
        only = form.cut([form.eos_id])
        assert [s.kind for s in only] == ["eos"]


def test_a_models_further_end_tokens_end_a_response_too() -> None:
    form = Format(tiny_tokenizer("plain"), end_ids=[7])
    assert [s.kind for s in form.cut([40, 41, 7])] == ["response", "eos"] and form.end_ids == {1, 7}
    assert form.cut([40, 7])[-1].ids == [7] and form.eos_id == 1


# -- tags ------------------------------------------------------------------------------------------------------------
TAGGED = [
    # text, kinds of its segments, answer, rationale
    ("<think>1+1</think><answer>2</answer>", ["rationale", "answer"], "2", "1+1"),
    ("<answer>2</answer>", ["answer"], "2", ""),
    ("2", ["response"], None, ""),
    ("", [], None, ""),
    ("<think>1+1<answer>2</answer>", ["response", "answer"], "2", ""),
    ("<think>1+1</think><answer>2", ["rationale", "response"], None, "1+1"),
    ("<answer>2", ["response"], None, ""),
    ("2</answer>", ["response"], None, ""),
    ("<answer>2</answer>no, <answer>3</answer>", ["answer", "response", "answer"], "3", ""),
    ("<plan>add</plan><execute>1+1</execute><answer>2</answer>", ["plan", "execution", "answer"], "2", "add\n1+1"),
    ("<think><answer>1</answer></think><answer>2</answer>", ["rationale", "answer"], "2", "1"),
    ("<answer></answer>", ["answer"], "", ""),
]


@pytest.mark.parametrize(("text", "kinds", "answer", "rationale"), TAGGED)
def test_tags_are_read_only_where_they_are_closed(
    text: str, kinds: list[str], answer: str | None, rationale: str
) -> None:
    form = Format(tiny_tokenizer("tags"))
    sample = sampled(form, text)
    assert [s.kind for s in sample.segments[1:-1]] == kinds
    read = form.read(sample)
    assert (read.answer, read.rationale, read.text) == (answer, rationale, text)


def test_without_an_answers_tag_the_fallback_decides() -> None:
    for fallback, expected in (("missing", None), ("raw", "about 42")):
        form = Format(tiny_tokenizer("tags"), fallback=fallback)  # type: ignore[arg-type]
        assert form.read(sampled(form, "about 42")).answer == expected
    assert Format(tiny_tokenizer("tags")).fallback == "missing"
    assert Format(tiny_tokenizer("chat")).fallback == Format(tiny_tokenizer("plain")).fallback == "raw"


def test_an_answer_that_begins_in_a_given_prefix_is_read_whole() -> None:
    form = Format(tiny_tokenizer("tags"))
    prefix = Segment("prefix", form.encode("<think>1+1</think><answer>4"))
    sample = Sample([*form.prompt(PROBLEM), prefix, *form.cut([*form.encode("2</answer>"), form.eos_id])])
    read = form.read(sample)
    assert (read.answer, read.rationale) == ("42", "1+1")


# -- text ------------------------------------------------------------------------------------------------------------
TEXTS = [
    ("1+1=2\nAnswer: 2", ["rationale", "answer"], "2", "1+1=2"),
    ("Answer: 2", ["answer"], "2", ""),
    ("it is 2", ["response"], "it is 2", ""),
    ("Answer: 1\nno\nAnswer: 2", ["rationale", "answer"], "2", "Answer: 1\nno"),
    ("Answer:", ["answer"], "", ""),
    ("", [], "", ""),
]


@pytest.mark.parametrize("style", ["chat", "plain"])
@pytest.mark.parametrize(("text", "kinds", "answer", "rationale"), TEXTS)
def test_the_answer_follows_its_last_mark(style: str, text: str, kinds: list[str], answer: str, rationale: str) -> None:
    form = Format(tiny_tokenizer(style))
    sample = sampled(form, text)
    assert [s.kind for s in sample.segments[1:-1]] == kinds
    read = form.read(sample)
    assert (read.answer, read.rationale) == (answer, rationale)


# -- prompts ---------------------------------------------------------------------------------------------------------
def text_of(form: Format, segments: list[Segment]) -> str:
    return form.tokenizer.decode([i for s in segments for i in s.ids])


CHAT = (
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
)


def test_prompts_of_the_three_styles() -> None:
    tags, chat, plain = (Format(tiny_tokenizer(style)) for style in STYLES)
    talk = Problem("p", "2+2?", "4", messages=CHAT)
    assert text_of(tags, tags.prompt(PROBLEM)) == "<user>add 12 and 30<assistant>"
    assert text_of(tags, tags.prompt(talk)) == "<system>be brief<user>1+1?<assistant>2<user>2+2?<assistant>"
    assert text_of(chat, chat.prompt(PROBLEM)) == "[user] add 12 and 30\n[assistant] "
    assert text_of(chat, chat.prompt(talk)).endswith("[assistant] 2\n[user] 2+2?\n[assistant] ")
    assert text_of(plain, plain.prompt(PROBLEM)) == "add 12 and 30\n"
    assert text_of(plain, plain.prompt(talk)) == "be brief\n1+1?\n2\n2+2?\n"
    for form in (tags, chat, plain):
        (segment,) = form.prompt(PROBLEM)
        assert segment.kind == "question" and not segment.learn and not segment.sampled
        assert [x.ids for x in form.prompt(PROBLEM, hint=" (42)")] != [segment.ids]
        assert " (42)" in text_of(form, form.prompt(PROBLEM, hint=" (42)"))
        assert " (42)" in text_of(form, form.prompt(talk, hint=" (42)"))
        assert form.prompt(talk)[0].ids == form.prompt(talk)[0].ids, "a hint must not stay in the problem"


def test_what_is_cached_cannot_be_changed() -> None:
    form = Format(tiny_tokenizer("tags"))
    form.encode("add").append(5)
    first = form.prompt(PROBLEM)[0].ids
    first.append(9)
    assert 9 not in form.prompt(PROBLEM)[0].ids[-1:]
    assert form.encode("add") == form.tokenizer.encode("add", add_special_tokens=False)


def test_leading_tokens_of_the_tokenizer_stand_before_the_prompt_alone() -> None:
    tokenizer = train_tokenizer(["add 12 and 30", "42"], 300)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    for style in ("tags", "plain"):
        form = Format(tokenizer, style)  # type: ignore[arg-type]
        assert form.prompt(PROBLEM)[0].ids[0] == tokenizer.bos_token_id
        sample = form.demonstration(PROBLEM)
        assert sample.ids.count(tokenizer.bos_token_id) == 1 and sample.ids[-1] == tokenizer.eos_token_id


def test_digits_are_single_and_tags_are_one_token_in_a_tokenizer_of_ours() -> None:
    tokenizer = train_tokenizer(["12 + 345 = 357"] * 50, 320)
    form = Format(tokenizer)
    assert form.style == "tags" and len(form.encode("31459")) == 5
    assert all(len(form.encode(tag)) == 1 for tag in ("<think>", "</think>", "<answer>", "<critique>", "<spare-7>"))
    for text in ("héllo\n\t~", "  two spaces", "<answer>1</answer>"):
        assert form.decode(form.encode(text)) == text


# -- tokenizers ------------------------------------------------------------------------------------------------------
def without(**changes: Any) -> PreTrainedTokenizerFast:
    fast = tiny_tokenizer("plain")
    return PreTrainedTokenizerFast(tokenizer_object=fast.backend_tokenizer, **changes)


def test_a_tokenizer_without_an_end_is_refused() -> None:
    with pytest.raises(WhetError, match="no end token"):
        Format(without(pad_token="<pad>"))


def test_a_pad_that_is_the_end_is_still_learnt() -> None:
    """Nothing looks for pads in the ids: the end token is a segment."""
    form = Format(without(eos_token="<eos>", pad_token="<eos>"))
    sample = form.demonstration(PROBLEM)
    assert sample.ids[-1] == form.eos_id == form.tokenizer.pad_token_id
    assert bool(sample.learn_mask[-1])
    Format(without(eos_token="<eos>"))  # none at all will do too


def test_a_problem_without_an_answer_cannot_be_demonstrated() -> None:
    with pytest.raises(WhetError, match="'p' has no answer to learn from"):
        Format(tiny_tokenizer("tags")).demonstration(Problem("p", "q"))
