"""The count of a method's lines: what a code line is, and whom a module serves, on a toy package and on the real one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # the benchmarks are no part of the package

from benchmarks import lines

SOURCE = '''"""A module.

With a docstring of three lines.
"""

import os  # a comment behind code

# a comment
TEXT = """two lines

of text"""


def f(
    x: int,
) -> int:
    """What it does."""
    return x  # 1


class Empty:
    "docstring"

    async def g(self):
        """One."""
        "an expression that is no docstring"
'''


def test_code_lines_are_without_blanks_comments_and_docstrings() -> None:
    # import, TEXT (2), def (3), return, class, async def, expression
    assert lines.code_lines(SOURCE) == 10
    assert lines.code_lines('"""Only a docstring."""\n') == 0 == lines.code_lines("")


TOY = {
    "__init__.py": "from toy.parts import shared_part\n",
    "cli.py": "def main():\n    from toy.tasks import named\n    return named\n",
    "tasks/__init__.py": "",
    "tasks/named.py": "import toy.tasks.words\nnamed = 1\n",
    "tasks/words.py": "words = 1\n",
    # a package that hands on what its modules make: asking it for one is not asking for all
    "parts/__init__.py": "from .alone import Alone\nfrom .both import Both\nfrom toy.parts.deeper import Deep as Deeper\n"
    "def shared_part():\n    return 1\n",
    "parts/alone.py": "from toy.parts import helper\nclass Alone:\n    x = helper\n",
    "parts/helper.py": "y = 1\n",
    "parts/both.py": "class Both: ...\n",
    "parts/deeper.py": "from . import both\nclass Deep: ...\n",
    "parts/studied.py": "z = 1\n",
    "recipes/__init__.py": "",
    "recipes/recipe.py": "def recipe(**k): ...\n",
    "recipes/f/__init__.py": "",
    "recipes/f/parent.py": "from toy.recipes.recipe import recipe\n@recipe()\ndef parent(): ...\n",
    "recipes/f/one.py": "from toy.recipes.f.parent import parent\nfrom toy.recipes.recipe import recipe\n"
    "from toy.parts import Alone\nfrom toy.parts import Both\n@recipe(paper='one')\ndef one(): ...\n",
    "recipes/f/two.py": "from toy.recipes.recipe import recipe\nfrom toy.parts import Both, Deeper\nfrom toy.tasks.words import words\n"
    "from toy.recipes.f.two_parts import part\n@recipe(paper='two', parent='parent')\ndef two(): ...\n",
    "recipes/f/two_parts.py": "part = (\n    1,\n)\n",
    "recipes/f/one_study.py": "from toy.parts.studied import z\nfrom toy.recipes.f.two_parts import part\n",
    "recipes/f/grand.py": "from toy.recipes.recipe import recipe\n@recipe(paper='grand')\ndef grand(): ...\n",
    "recipes/f/child.py": "from toy.recipes.f.grand import grand\nfrom toy.recipes.recipe import recipe\n"
    "@recipe(paper='child', parent='grand')\ndef child(): ...\n",
}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    for place, text in TOY.items():
        file = tmp_path / "toy" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "toy"


def test_whom_a_module_serves(toy: Path) -> None:
    reached = lines.owners(lines.modules(toy), "toy")
    assert reached["toy.parts.alone"] == reached["toy.parts.helper"] == {"one"}, "over any number of modules"
    assert reached["toy.parts.both"] == {"one", "two"} and reached["toy.parts.deeper"] == {"two"}, "by another name too"
    assert reached["toy.recipes.f.parent"] == {"", "one"}, "a recipe without a paper is shared"
    assert reached["toy.tasks.words"] == {"", "two"}, "the command reaches it too, inside a function"
    assert reached["toy.recipes.f.two_parts"] == {"two"}, "a study uses it, and studies are apart"
    assert "" in reached["toy.parts.studied"] and "toy.recipes.f.one_study" not in reached


def test_what_serves_a_paper_alone(toy: Path) -> None:
    own = lines.by_paper(lines.modules(toy), "toy")
    assert own["one"] == {"toy.recipes.f.one": 6, "toy.parts.alone": 3, "toy.parts.helper": 1}
    assert own["two"] == {"toy.recipes.f.two": 6, "toy.recipes.f.two_parts": 3, "toy.parts.deeper": 2}
    assert own["child"] == {"toy.recipes.f.child": 4} and own["grand"] == {}, "its child builds on it"


def test_the_table(toy: Path) -> None:
    families = {"one": "f", "two": "f", "child": "g", "grand": "g"}
    shown = lines.table(lines.by_paper(lines.modules(toy), "toy"), families).splitlines()
    assert [row for row in shown if row.startswith(("| two ", "| one ", "| child "))] == [
        "| two | f | 11 | recipes.f.two 6, recipes.f.two_parts 3, parts.deeper 2 |",
        "| one | f | 10 | recipes.f.one 6, parts.alone 3, parts.helper 1 |",
        "| child | g | 4 | recipes.f.child 4 |",
    ]
    assert {"| f | 2 | 10.5 | 11 |", "| g | 1 | 4 | 4 |", "| all | 3 | 10 | 11 |"} <= set(shown)
    assert "grand" in next(row for row in shown if row.startswith("Shared as a whole"))
    assert shown[-1] == "Target: median below 80 (10: met), none above 250 (met)."
    long = lines.table({"one": {"toy.x": 300}}, families).splitlines()[-1]
    assert long == "Target: median below 80 (300: MISSED), none above 250 (one: MISSED)."


def test_the_package() -> None:
    """Every paper with a recipe is counted, and no shared part for one of them."""
    own = lines.by_paper(lines.modules(Path(lines.__file__).parents[1] / "src" / "whet"), "whet")
    assert len(own) > 20 and "whet.recipes.supervised.asft" in own["asft"] and not own["grpo"]
    counted = {name for parts in own.values() for name in parts}
    assert not counted & {"whet.recipes.supervised.sft", "whet.training.fit", "whet.objectives.likelihood", "whet.cli"}
    assert not any(name.endswith("_study") for name in counted)
