"""The list of papers: complete, unambiguous, and what recipes refer to."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby

import pytest

from whet.errors import WhetError
from whet.papers import paper, papers


def test_the_94_and_their_4_parents():
    assert sum(not p.parent for p in papers()) == 94
    assert {p.slug: p.arxiv for p in papers() if p.parent} == {
        "grpo": "2402.03300", "ppo": "1707.06347", "dpo": "2305.18290", "star": "2203.14465",
    }  # fmt: skip


def test_papers_by_family():
    """The numbers of the papers' index; a paper that is lost or put elsewhere changes one of them."""
    assert Counter(p.family for p in papers() if not p.parent) == {
        "supervised": 12, "reinforced": 9, "hybrid": 3, "sparse": 10, "preference": 6, "latent": 6, "guided": 10,
        "probes": 3, "vision": 13, "video": 3, "action": 1, "classifier": 3, "diffusion": 2, "graph": 1, "agents": 3,
        "retrieval": 4, "studies": 5,
    }  # fmt: skip


def test_families_are_contiguous_with_their_parents_first():
    families = [(family, [p.parent for p in rows]) for family, rows in groupby(papers(), key=lambda p: p.family)]
    assert len(families) == len(dict(families))
    assert all(parents == sorted(parents, reverse=True) for _, parents in families)


def test_slugs_and_numbers_are_well_formed_and_unique():
    assert len({p.slug for p in papers()}) == len({p.arxiv for p in papers()}) == 98
    for p in papers():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", p.slug), p
        assert re.fullmatch(r"\d{4}\.\d{4,5}", p.arxiv), p
        assert p.title == " ".join(p.title.split()) != "", p


def test_a_paper_by_its_slug():
    lift = paper("lift")
    assert lift.family == "sparse" and lift.url == "https://arxiv.org/abs/2506.00772" and not lift.parent
    with pytest.raises(WhetError, match=r"unknown paper 'relif': did you mean 'relift'\?"):
        paper("relif")


def test_every_recipe_names_a_known_paper():
    from whet.recipes.recipe import recipes

    for entry in recipes().values():
        if entry.paper:
            paper(entry.paper)


# papers of another family that are only a grid over existing methods: `recipes/studies/` holds what they need
GRIDS = {"opt-r"}


def folder_of(slug: str) -> str:
    """Where a paper's recipe and its study lie."""
    return "studies" if slug in GRIDS else paper(slug).family


def test_recipe_folders_follow_the_papers_families():
    from whet.recipes.recipe import recipes

    own = [e for e in recipes().values() if e.paper and e.build.__module__.startswith("whet.recipes.")]
    wrong = {e.name: e.build.__module__ for e in own if e.build.__module__.split(".")[2] != folder_of(e.paper)}
    assert not wrong
    assert {e.paper for e in own} >= GRIDS and len(own) > 40


def test_a_study_lies_beside_its_papers_recipe():
    from whet.study import studies

    own = [s for s in studies().values() if s.paper and s.judge.__module__.startswith("whet.recipes.")]
    assert len(own) > 20
    assert not {s.slug: s.judge.__module__ for s in own if s.judge.__module__.split(".")[2] != folder_of(s.paper)}
