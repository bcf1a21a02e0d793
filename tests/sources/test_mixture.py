"""Mixtures as a source of any supervised recipe: rates, epochs, what is left out, and identity with one task alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from trained import trained_folder
from whet.errors import WhetError
from whet.launch import run
from whet.sources import Mixture, Part, Uniform
from whet.sources.problems import rates
from whet.tasks import get_task


def bound(text: str, temperature: float | None = 1.0, seed: int = 5) -> Mixture:
    made = Mixture(Part.read(text), temperature=temperature)
    made.bind(get_task("parity"), seed)
    return made


def file(folder: Path, name: str, rows: list[dict]) -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rates_are_the_cards_numbers() -> None:
    assert rates([100, 300], 1) == [0.25, 0.75]
    assert rates([100, 300], 2) == pytest.approx([0.3660, 0.6340], abs=5e-5)
    assert rates([100, 300], math.inf) == [0.5, 0.5]


def test_proportional_mixing_visits_every_row_once_an_epoch() -> None:
    mixed = bound("parity#20;sort:level=1#12;parity:level=2#8")
    epoch = [p.id for p in mixed.draw(40)]
    assert len(set(epoch)) == 40
    assert Counter(i.split("/")[0] for i in epoch) == {"0": 20, "1": 12, "2": 8}
    assert sorted(p.id for p in mixed.draw(40)) == sorted(epoch)
    assert next(mixed.part_of(p).task.spec() for p in mixed.draw(1)) in ("parity", "sort:level=1", "parity:level=2")


def test_a_part_gives_no_more_than_its_rows_and_large_temperatures_even_out() -> None:
    mixed = bound("parity#10;sort:level=1#40", math.inf)
    drawn = [p.id for p in mixed.draw(2000)]
    share = sum(i.startswith("0/") for i in drawn) / 2000
    assert 0.46 < share < 0.54
    assert len({i for i in drawn if i.startswith("0/")}) == 10 and len({i for i in drawn if i.startswith("1/")}) == 40
    visits = Counter(i for i in drawn if i.startswith("0/"))
    assert max(visits.values()) - min(visits.values()) <= 1  # a part's rows come in epochs too


def test_a_resumed_mixture_goes_on_where_it_was() -> None:
    for temperature in (None, 1.0, 2.0):
        text = "parity#10;sort:level=1#40"
        whole, first, rest = (bound(text, temperature) for _ in range(3))
        expected = [p.id for p in whole.draw(30)]
        first.draw(13)
        rest.load_state_dict(first.state_dict())
        assert [p.id for p in rest.draw(17)] == expected[13:]


def test_a_mixture_of_one_set_is_the_run_on_that_set() -> None:
    alone = Uniform(limit=20)
    alone.bind(get_task("parity"), 5)
    assert bound("parity#20").draw(50) == alone.draw(50)
    settings = {"task": "parity", "model": trained_folder(), "steps": 3, "batch": 4, "test_n": 4, "validation_n": 4, "k": 0,
                "others": [], "eval_every": 0}  # fmt: skip
    ours = run("sft", mixture="parity#16", **settings).policy.model.state_dict()
    theirs = run("sft", limit=16, **settings).policy.model.state_dict()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_what_another_set_tests_is_not_learnt(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "answer": str(n)} for n in range(200)]
    first = file(tmp_path, "a.jsonl", rows)
    held = {p.prompt for split in ("validation", "test") for p in get_task(first).problems(split)}  # type: ignore[arg-type]
    shifted = [{"prompt": f"q{n}", "answer": str(n), "document": n // 10} for n in range(100, 300)]
    second = file(tmp_path, "b.jsonl", shifted)
    mixed = bound(f"{first};{second}")
    drawn = mixed.draw(len(mixed._all))
    prompts = [p.prompt for p in drawn]
    assert len(prompts) == len(set(prompts)) and not held & set(prompts)
    tested = [p for split in ("validation", "test") for p in get_task(second).problems(split)]  # type: ignore[arg-type]
    assert not {p.prompt for p in tested} & set(prompts)
    documents = {p.data["document"] for p in tested}
    assert documents and not documents & {p.data.get("document") for p in drawn}
    assert mixed.counts[f"{second}: held out elsewhere"] > 0 and sum(mixed.counts.values()) > 0


def test_generated_sets_leave_out_what_their_own_tests_ask() -> None:
    mixed = bound("chain-sum:level=1#200;chain-sum:level=1-2#200")
    tests = {p.prompt for t in ("chain-sum:level=1", "chain-sum:level=1-2") for p in get_task(t).problems("test", 1024)}
    drawn = mixed.draw(len(mixed._all))
    first, second = ({p.prompt for p in drawn if p.id.startswith(place)} for place in ("0/", "1/"))
    assert first and second and not tests & (first | second) and not first & second


def test_texts_are_read_and_mistakes_named() -> None:
    one, two = Part.read("finance:level=1:subtask=sum*2~0.5#30; sort")
    assert (one.task.spec(), one.share, one.worked, one.rows) == ("finance:level=1,subtask=sum", 2.0, 0.5, 30)
    assert (two.task.spec(), two.share, two.worked, two.rows) == ("sort", 1.0, 1.0, 0)
    for text, told in (("sort#many", "write task[*]share~worked#rows"), ("srot", "unknown task 'srot'")):
        with pytest.raises(WhetError, match=told):
            Part.read(text)
    with pytest.raises(WhetError, match="task 'sort' is generated and never ends; say how many rows"):
        bound("sort")
    with pytest.raises(WhetError, match="temperature is at least 1"):
        Mixture(Part.read("sort#3"), temperature=0.5)
    from whet.recipes.recipe import get_recipe

    with pytest.raises(WhetError, match="limit, mixture and problems each say"):
        get_recipe("sft")(limit=4, mixture="sort#3")
