"""Pensez's card: its tests by number, and the filters that curation is made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import tiny_policy
from trained import trained_folder, trained_policy
from whet.errors import WhetError
from whet.launch import run
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.objectives.forward import run as forward
from whet.objectives.views import Clean, Neftune
from whet.recipes.recipe import get_recipe
from whet.records import Sample, Segment
from whet.sources import Curated, Scope, Subset, Uniform
from whet.sources.curation import (
    Correct,
    Difficulty,
    Distinct,
    Language,
    Length,
    Rank,
    is_in,
    option_letters,
    own_answer,
)
from whet.tasks import Problem, Step, get_task
from whet.training.stage import Stage

ROOM: dict[str, Any] = {"max_position_embeddings": 1024}


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(style="tags", **ROOM)


def made(policy: Policy, task: str = "logic:level=1-3", seed: int = 3, **arguments: Any) -> Stage:
    (stage,) = get_recipe("pensez")(**arguments).stages
    stage.problems.bind(get_task(task), seed)
    stage.collect.bind(get_task(task))
    stage.collect.prepare(stage.problems, policy, Scope(get_task(task), seed))
    return stage


def samples(stage: Stage) -> list[Sample]:
    return [row["response"] for row in stage.collect.stored]  # type: ignore[attr-defined]


# -- 1 ---------------------------------------------------------------------------------------------------------------
def test_1_the_set_has_the_declared_counts_and_every_row_one_trace_and_an_answer(policy: Policy) -> None:
    stage = made(policy, rows=2000)
    counts = stage.collect.counts
    assert {k: n for k, n in counts.items() if k.endswith("kept")} == {
        "first, long: kept": 700, "first, short: kept": 300, "second, long: kept": 700, "second, short: kept": 300,
    }  # fmt: skip
    found = samples(stage)
    assert len(found) == 2000 == len({s.problem_id for s in found})
    for sample in found:
        text = policy.format.decode(sample.ids)
        assert text.count("<think>") == text.count("</think>") == 1 and text.index("</think>") < text.index("<answer>")
        assert policy.format.read(sample).answer and sample.ended and len(sample) <= policy.max_length
    few = [[s.ids for s in samples(made(policy, rows=40, seed=seed))] for seed in (3, 3, 4)]
    assert few[0] == few[1] != few[2]


def test_1_a_subset_that_cannot_be_filled_says_what_was_dropped(policy: Policy) -> None:
    problems, scope = Uniform(), Scope(get_task("parity"), 0)
    problems.bind(scope.task, 0)
    curated = Curated([Subset("all", 20, [Length(1, 3)])])
    with pytest.raises(
        WhetError, match=r"subset 'all' wants 20 rows and found 0 .drawn 60, dropped, length 60, kept 0"
    ):
        curated.prepare(problems, policy, scope)
    short = Curated([Subset("all", 20, [Rank("longest", 0.1)], over=2)])
    short.prepare(problems, policy, scope)
    assert short.counts["all: kept"] == 4
    with pytest.raises(WhetError, match="wants 20 rows and found 4"):
        Curated(short.subsets, exact=True).prepare(problems, policy, scope)


# -- 2 ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("traces", ["kept", "translated"])
def test_2_french_rows_ask_and_answer_in_french_and_think_as_told(policy: Policy, traces: str) -> None:
    stage = made(policy, rows=80, traces=traces)
    halves = samples(stage)[:40], samples(stage)[40:]
    for spoken, half in zip(("en", "fr"), halves, strict=True):
        thought = "fr" if spoken == "fr" and traces == "translated" else "en"
        for sample in half:
            question = policy.format.decode(sample.segments[0].ids)
            response = policy.format.read(sample)
            assert is_in(question, spoken, 0.99) and is_in(response.answer or "", spoken, 0.99)
            assert is_in(response.rationale, thought)
            assert not is_in(question, "en" if spoken == "fr" else "fr")
    assert stage.collect.counts["second, long: dropped, language"] == 0


def test_2_languages_are_told_by_small_words_and_formulas_are_left_out() -> None:
    assert is_in("If a then b. Is it true?", "en") and not is_in("If a then b. Is it true?", "fr")
    assert is_in("Combien de billes a Mia maintenant ?", "fr") and not is_in(
        "Combien de billes a Mia maintenant ?", "en"
    )
    assert is_in("12", "fr") and is_in("", "en") and is_in("3x+4=7", "fr")
    assert is_in(r"Calculez \( the \) pour la suite", "fr")
    en, fr = (Problem("p", text, "12", steps=(Step("so it is true"),)) for text in ("how many?", "combien est-il ?"))
    scope, nobody = Scope(get_task("parity"), 0), tiny_policy()
    assert Language("fr", "en").keep([en, fr], nobody, scope) == [fr]
    assert Language("en", "en").keep([en, fr], nobody, scope) == [en]
    with pytest.raises(WhetError, match="unknown language 'ge'"):
        Language("ge", "en")


# -- 3 ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rationale", "answer", "reference", "kept"),
    [
        (r"so it is \boxed{12}", "12", None, True),
        (r"so it is \boxed{13}", "12", None, False),
        (r"\boxed{3} or rather, later, \boxed{12}", "12", None, True),
        ("hence\nAnswer: 12", "12", None, True),
        ("hence\nAnswer: 11", "12", None, False),
        ("hence 11", "12", None, True),  # announces nothing: the answer's own field
        ("", "11", "12", False),
        ("", "12", "12", True),
        (r"\boxed{A, B, D}", "ABD", None, True),
        (r"\boxed{A, B}", "ABD", None, False),
        ("", "(A) (B) and (D)", "ABD", True),
    ],
)
def test_3_rows_whose_own_answer_is_not_the_reference_are_dropped(
    rationale: str, answer: str, reference: str | None, kept: bool
) -> None:
    data = {"reference": reference} if reference else {}
    problem = Problem("p", "q", answer, steps=tuple(Step(t) for t in rationale.splitlines()), data=data)
    assert bool(Correct().keep([problem], tiny_policy(), Scope(get_task("parity"), 0))) == kept


def test_3_braces_are_matched_and_options_normalised() -> None:
    assert own_answer(Problem("p", "q", "x", steps=(Step(r"it is \boxed{\frac{1}{2}}"),))) == r"\frac{1}{2}"
    assert option_letters("ABD") == option_letters("A, B, D") == option_letters("(D) (A) (B)") == "ABD"
    assert option_letters("12") == option_letters("Bad") == option_letters("AA") == ""


def test_3_noise_is_dropped_by_curation_and_learnt_without_it(policy: Policy) -> None:
    task = get_task("logic:level=1-3")
    noisy = made(policy, rows=60, bilingual=0.0, noise=0.3)
    dropped = sum(n for k, n in noisy.collect.counts.items() if k.endswith("dropped, wrong"))
    drawn = sum(n for k, n in noisy.collect.counts.items() if k.endswith("drawn"))
    assert 0.15 < dropped / drawn < 0.45
    known = {p.id: p for p in task.problems("train", 2000, seed=3)}

    def wrong(stage: Stage) -> float:
        return sum(policy.format.read(s).answer != known[s.problem_id].answer for s in samples(stage)) / len(
            samples(stage)
        )

    assert wrong(noisy) == 0.0
    assert 0.15 < wrong(made(policy, rows=60, bilingual=0.0, noise=0.3, curate=False)) < 0.45


def test_the_other_filters_keep_what_they_say() -> None:
    scope, nobody = Scope(get_task("parity"), 0), trained_policy(**ROOM)
    asked = [Problem(f"p{i}", text, "1", steps=(Step("x" * n),)) for i, (text, n) in enumerate(
        [("What is 1+1?", 5), ("what is  1+1", 9), ("What is 1-1?", 2), ("What is 2?", 40)])]  # fmt: skip
    assert [p.id for p in Distinct().keep(asked, nobody, scope)] == ["p0", "p2", "p3"]
    assert [p.id for p in Rank("longest", 0.5).keep(asked, nobody, scope)] == ["p1", "p3"]
    assert [p.id for p in Rank("shortest", 0.5).keep(asked, nobody, scope)] == ["p0", "p2"]
    sizes = [len(nobody.format.demonstration(p)) for p in asked]
    assert [p.id for p in Length(1, max(sizes) - 1).keep(asked, nobody, scope)] == ["p0", "p1", "p2"]
    problems = get_task("parity").problems("train", 24)
    everything = Difficulty(0.0, 1.0, 2).keep(problems, nobody, scope)
    hard, easy = (
        Difficulty(0.0, 0.5, 2).keep(problems, nobody, scope),
        Difficulty(0.6, 1.0, 2).keep(problems, nobody, scope),
    )
    assert everything == problems and sorted(p.id for p in hard + easy) == sorted(p.id for p in problems)
    assert hard and easy


# -- 4 ---------------------------------------------------------------------------------------------------------------
def test_4_a_row_does_not_see_the_others_of_its_batch(policy: Policy) -> None:
    """Rows are padded and not packed; the property that packing would need a mask for."""
    second = Sample([Segment("question", [5, 6, 7]), Segment("answer", [8, 9], learn=True)], "b")
    found = []
    for tokens in ([20, 21], list(range(40, 60))):
        first = Sample([Segment("question", tokens), Segment("answer", [8], learn=True)], "a")
        found.append(forward(policy, Batch.of([first, second]), Clean(), 0, 1.0).logprobs[1:])
    torch.testing.assert_close(found[0], found[1])


# -- 5 ---------------------------------------------------------------------------------------------------------------
def test_5_the_noise_is_uniform_in_its_bounds_and_its_length_is_a_switch(policy: Policy) -> None:
    short = Sample([Segment("question", list(range(5, 15))), Segment("answer", [8], learn=True)], "a")
    long = Sample([Segment("question", list(range(5, 44))), Segment("answer", [8], learn=True)], "b")
    batch = Batch.of([short, long])
    size = policy.model.config.hidden_size

    def noise(padded: bool) -> torch.Tensor:
        seen = torch.stack(
            [Neftune(5.0, padded).see(policy, batch, seed).embeds - policy.embed(batch.ids) for seed in range(50)]
        )
        return seen.detach()

    own, whole = noise(False), noise(True)
    for found, lengths in ((own, (11, 40)), (whole, (40, 40))):
        for row, (real, length) in enumerate(zip((11, 40), lengths, strict=True)):
            values, bound = found[:, row, :real], 5.0 / (length * size) ** 0.5
            assert bound * 0.99 < float(values.abs().max()) <= bound * 1.0001
            assert abs(float(values.mean())) < 0.02 * bound
            assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.03)
    assert float(own[:, 0, 11:].abs().max()) == 0.0  # nothing on padding


def test_5_off_is_bit_equal_and_it_is_in_training_only() -> None:
    settings: dict[str, Any] = {"task": "parity", "model": trained_folder(), "steps": 2, "batch": 4, "rows": 16, "test_n": 4,
                                "validation_n": 4, "k": 0, "others": [], "eval_every": 0}  # fmt: skip
    off = run("pensez", neftune=0.0, **settings)
    on = run("pensez", **settings)
    assert any(
        not torch.equal(a, b) for a, b in zip(off.policy.model.parameters(), on.policy.model.parameters(), strict=True)
    )
    assert off.summary["before"] == on.summary["before"]
    (stage,) = get_recipe("pensez")(neftune=0.0).stages
    (noisy,) = get_recipe("pensez")().stages
    ((_, plain),), ((_, term),) = stage.updates[0].loss.terms, noisy.updates[0].loss.terms
    assert plain.view is None and term.view == Neftune(5.0)  # type: ignore[attr-defined]


# -- 6, 7 ------------------------------------------------------------------------------------------------------------
def test_6_trace_answer_and_end_are_learnt_and_the_question_is_not(policy: Policy) -> None:
    for sample in samples(made(policy, rows=12)):
        assert [(s.kind, s.learn) for s in sample.segments] == [
            ("question", False), ("rationale", True), ("answer", True), ("eos", True)
        ]  # fmt: skip


def test_7_the_weights_of_every_epoch_are_kept(tmp_path: Path) -> None:
    run("pensez", task="parity", model=trained_folder(), epochs=3, batch=4, rows=8, out=tmp_path / "run", test_n=4,
        validation_n=4, k=0, others=[], eval_every=0)  # fmt: skip
    kept = sorted(p.name for p in (tmp_path / "run" / "milestones").iterdir())
    assert kept == [f"step-{n:08d}.safetensors" for n in (2, 4, 6)]


# -- a user's file, refusals -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("weights", ["full", "lora:rank=4"])
def test_it_curates_a_file(weights: str, tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    rows = [{"prompt": f"What is {n} + {n}?", "answer": 2 * n, "completion": f"It is \\boxed{{{2 * n + (n % 5 == 0)}}}"}
            for n in range(80)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows + rows[:20]))
    done = run("pensez", task=str(path), model=trained_folder("qwen3", "plain", **ROOM), weights=weights, bilingual=0,
               rows=24, steps=2, batch=4, out=tmp_path / "run", test_n=3, validation_n=3, k=0, others=[],
               eval_every=0)  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    counts = next(line for line in lines if "collected/first, long: kept" in line)
    assert counts["collected/first, long: dropped, wrong"] > 0 and done.progress.finished


def test_what_cannot_work_is_refused(policy: Policy) -> None:
    with pytest.raises(WhetError, match="task 'chain-sum' has no transform `language`; use a task that has one"):
        made(policy, "chain-sum")
    made(policy, "chain-sum", bilingual=0.0, rows=10)
    with pytest.raises(WhetError, match="writes no wrong rationales"):
        get_recipe("pensez")(noise=0.1, bilingual=0).stages[0].collect.bind(_Bare())
    for arguments, told in (({"traces": "gone"}, "kept or translated"), ({"long": 2.0}, "long is a share")):
        with pytest.raises(WhetError, match=told):
            get_recipe("pensez")(**arguments)


class _Bare(type(get_task("parity"))):  # type: ignore[misc]
    def provides(self) -> set[str]:
        return super().provides() - {"corruptions"}


def test_french_logic_is_the_same_problem_in_the_same_split() -> None:
    english, french = (get_task(spec) for spec in ("logic:level=2", "logic:level=2,lang=fr"))
    forward_, _ = english.transforms()["language"]
    for a, b in zip(english.problems("test", 20), french.problems("test", 20), strict=True):
        assert replace(forward_(a), id=b.id) == b
    assert french.spec() == "logic:level=2,lang=fr"
