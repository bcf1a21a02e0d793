"""The papers that Whet is made from, as they stand in `papers.toml`.

Whether a paper is implemented is not written there: it is when a registered recipe or a study names it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from whet.errors import unknown

FILE = Path(__file__).with_name("papers.toml")


@dataclass(frozen=True, slots=True)
class Paper:
    """One paper.

    Attributes:
        slug: its short name, which recipes refer to.
        arxiv: its arXiv number.
        family: the folder of `whet.recipes` that its method belongs to, or `probes`.
        parent: whether it is a parent that several of the others build on, and not one of them.
    """

    slug: str
    title: str
    arxiv: str
    family: str
    parent: bool = False

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"


@cache
def papers() -> tuple[Paper, ...]:
    """All papers, family by family; in each the parents come first."""
    with FILE.open("rb") as file:
        return tuple(Paper(**row) for row in tomllib.load(file)["paper"])


def paper(slug: str) -> Paper:
    """A paper by its slug. Raises WhetError with the nearest slug."""
    found = {p.slug: p for p in papers()}
    if slug not in found:
        raise unknown("paper", slug, found)
    return found[slug]
