"""Cocktail's card: its tests by number (3 and the left-out rows of 5 are in sources/test_mixture.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trained import trained_folder, trained_policy
from whet.errors import WhetError
from whet.launch import run
from whet.recipes.recipe import get_recipe
from whet.recipes.studies.mixtures import contribution, gain, name_of, plan, transfer
from whet.sources import Scope
from whet.tasks import get_task

QUICK: dict[str, Any] = {"test_n": 4, "validation_n": 4, "k": 0, "others": [], "eval_every": 0}
NINE = list("abcdefghi")


# -- 1 ---------------------------------------------------------------------------------------------------------------
def test_1_nine_sets_make_55_mixtures_that_no_order_changes() -> None:
    mixes = plan(NINE)
    assert len(mixes) == 55 == len({name_of(m) for m in mixes})
    assert [sum(len(m) == n for m in mixes) for n in (1, 2, 8, 9)] == [9, 36, 9, 1]
    assert {name_of(m) for m in plan(NINE[::-1])} == {name_of(m) for m in mixes}
    assert len(plan(NINE, ("singles", "leave_one_out", "all"))) == 19
    assert plan(["a", "b"]) == [frozenset("a"), frozenset("b"), frozenset("ab")]
    assert plan(NINE, (), [["b", "a"], ["a", "b"]]) == [frozenset("ab")]
    for given, told in (((["a", "a"],), "different sets"), ((NINE, ("triples",)), "unknown kind of mixture"),
                        ((NINE, (), [["z"]]), "unknown set of a mixture")):  # fmt: skip
        with pytest.raises(WhetError, match=told):
            plan(*given)  # type: ignore[arg-type]


# -- 2 ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("weights", ["full", "lora:rank=4"])
def test_2_one_set_is_the_run_on_it(weights: str) -> None:
    settings = {"model": trained_folder(), "task": "parity", "batch": 4, "weights": weights, **QUICK}
    ours = run("cocktail", sets="parity", limit=16, epochs=1, **settings)
    theirs = run("sft", limit=16, steps=4, **settings)
    a, b = ours.policy.model.state_dict(), theirs.policy.model.state_dict()
    assert ours.summary["steps"] == 4 and all(torch.equal(a[n], b[n]) for n in a)


# -- 4 ---------------------------------------------------------------------------------------------------------------
def test_4_the_effects_of_the_toy_matrix() -> None:
    sets = ["t", "u", "v"]
    t, tu, tv, uv, full = (frozenset(m) for m in ("t", "tu", "tv", "uv", "tuv"))
    s = {(t, "t"): 0.50, (tu, "t"): 0.60, (tv, "t"): 0.55, (full, "t"): 0.65, (uv, "t"): 0.10, (tu, "u"): 0.9}
    assert gain(s, "t") == pytest.approx(0.10)
    assert transfer(s, "t", "u") == pytest.approx(0.10)
    assert contribution(s, "t", "u", sets) == pytest.approx(0.65 - 0.55)
    with pytest.raises(WhetError, match="no mixture holds 'x'"):
        gain(s, "x")


# -- 6 ---------------------------------------------------------------------------------------------------------------
def test_6_responses_alone_are_learnt_and_one_token_counts_as_one_and_the_end() -> None:
    policy = trained_policy()
    (stage,) = get_recipe("cocktail")(sets="parity", limit=8, rationale=False).stages
    stage.problems.bind(get_task("parity"), 0)
    for row in stage.collect.rows(stage.problems, 8, policy, Scope(get_task("parity"), 0)):
        sample = row["response"]
        answer, eos = (s for s in sample.segments if s.learn)
        assert (answer.kind, eos.kind) == ("answer", "eos") and len(eos.ids) == 1
        inner = [i for i in answer.ids if policy.format.decode([i]) not in ("<answer>", "</answer>")]
        assert len(inner) == 1 and policy.format.decode(inner) in ("0", "1")
        assert sample.count_learnt() == len(answer.ids) + 1


# -- what is counted, files, refusals -----------------------------------------------------------------------------------
def test_epochs_and_steps_count_as_they_say(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text("".join(f'{{"prompt": "q{n}", "answer": {n}}}\n' for n in range(100)))
    in_train = len(get_task(str(path)).problems("train"))

    def steps(**arguments: Any) -> int:
        (stage,) = get_recipe("cocktail")(batch=10, **arguments).stages
        return stage.steps

    assert steps(sets="parity;sort#40", limit=60, epochs=2) == 20
    assert steps(sets=f"{path};parity#40", limit=1000, epochs=1) == round((in_train + 40) / 10)
    assert steps(sets="parity;sort", count="steps", steps=7) == 7
    done = run("cocktail", sets=f"{path}#30;parity#10", epochs=1, batch=8, task=str(path), verifier="number",
               model=trained_folder("qwen3", "plain"), out=tmp_path / "run", **QUICK)  # fmt: skip
    assert done.summary["steps"] == 5
    assert f"collected/{path}: rows" in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(WhetError, match="unknown count of cocktail 'epoch': did you mean 'epochs'"):
        get_recipe("cocktail")(count="epoch")
    with pytest.raises(WhetError, match="leave out mixture and problems"):
        get_recipe("cocktail")(mixture="sort#3")
