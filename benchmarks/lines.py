"""How short a method is: the code lines of the package that serve exactly one paper.

    python -m benchmarks.lines

A module counts for a paper where only that paper's recipe reaches it by imports, over any number of modules; what a second paper's
recipe, a recipe without a paper, or the rest of the package reaches too is shared, and counts for none. Studies are apart: they
are no part of a method. A name that a package hands on counts as an import of the module that makes it. Code lines are without
blank lines, comments and docstrings.

What is found by its name at run time (tasks, choices of weights) is reached by no import, and is shared.
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

TARGET_MEDIAN, TARGET_MOST = 80, 250
SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


@dataclass
class Module:
    """A module as its text says.

    Attributes:
        lines: code lines.
        papers: those that its recipes name, "" for a recipe without one; empty where it has no recipe.
        imports: modules that its code needs.
    """

    name: str
    lines: int
    papers: frozenset[str]
    imports: set[str] = field(default_factory=set)


def code_lines(text: str) -> int:
    """Lines with code on them: no blank ones, comments and docstrings."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, False
        ):
            documented |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    written = text.splitlines()
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SILENT:
            found |= {line for line in range(token.start[0], token.end[0] + 1) if written[line - 1].strip()}
    return len(found - documented)


def modules(package: Path) -> dict[str, Module]:
    """All modules of a package by name, with what each imports of it."""
    files = {_name(package, file): file for file in sorted(package.rglob("*.py"))}
    trees = {name: ast.parse(file.read_text()) for name, file in files.items()}
    makes = {name: _handed_on(name, tree, files) for name, tree in trees.items()}
    found = {}
    for name, tree in trees.items():
        found[name] = Module(name, code_lines(files[name].read_text()), _papers(tree))
        handed = {id(node) for node in tree.body} if files[name].name == "__init__.py" else set()
        for node in ast.walk(tree):
            if id(node) not in handed:  # what a package only hands on, it does not need
                found[name].imports |= {_source(m, n, files, makes) for m, n, _ in _imports(name, node, files)} & set(
                    files
                )
    return found


def owners(found: Mapping[str, Module], package: str) -> dict[str, set[str]]:
    """{module: the papers that reach it}; "" stands for everything that is no paper's recipe."""
    inside = f"{package}.recipes."
    reached: dict[str, set[str]] = defaultdict(set)

    def reach(name: str, owner: str) -> None:
        if owner not in reached[name]:
            reached[name].add(owner)
            for other in found[name].imports:
                reach(other, owner)

    for name, module in found.items():
        if not name.endswith("_study"):
            for paper in module.papers:
                reach(name, paper)
    for name in found:  # ways into the package besides recipes: the command, and what is found by name
        if name not in reached and not name.startswith(inside):
            reach(name, "")
    return dict(reached)


def by_paper(found: Mapping[str, Module], package: str) -> dict[str, dict[str, int]]:
    """{paper: {module: code lines}} of what serves this paper alone; a paper whose recipe is shared too has no module."""
    known = {
        paper for module in found.values() if not module.name.endswith("_study") for paper in module.papers if paper
    }
    own: dict[str, dict[str, int]] = {paper: {} for paper in sorted(known)}
    for name, papers in owners(found, package).items():
        if len(papers) == 1 and (paper := next(iter(papers))):
            own[paper][name] = found[name].lines
    return own


def table(own: Mapping[str, Mapping[str, int]], families: Mapping[str, str]) -> str:
    """The papers from the longest on, and the median and the longest of each family."""
    sums = {paper: sum(parts.values()) for paper, parts in own.items() if parts}
    lines = ["| paper | family | lines | modules |", "|---|---|---|---|"]
    for paper in sorted(sums, key=lambda p: (-sums[p], p)):
        parts = ", ".join(
            f"{name.partition('.')[2]} {n}" for name, n in sorted(own[paper].items(), key=lambda x: -x[1])
        )
        lines.append(f"| {paper} | {families[paper]} | {sums[paper]} | {parts} |")
    lines += ["", "| family | papers | median | longest |", "|---|---|---|---|"]
    groups: dict[str, list[int]] = defaultdict(list)
    for paper, n in sums.items():
        groups[families[paper]].append(n)
    everything = {**dict(sorted(groups.items())), "all": list(sums.values())}
    lines += [f"| {family} | {len(n)} | {median(n):g} | {max(n)} |" for family, n in everything.items()]
    over = [paper for paper, n in sums.items() if n > TARGET_MOST]
    shared = [paper for paper, parts in own.items() if not parts]
    middle = median(sums.values())
    lines += ["", f"Shared as a whole, since others build on it: {', '.join(shared) or 'none'}.",
              f"Target: median below {TARGET_MEDIAN} ({middle:g}: {'met' if middle < TARGET_MEDIAN else 'MISSED'}), none above "
              f"{TARGET_MOST} ({', '.join(over) + ': MISSED' if over else 'met'})."]  # fmt: skip
    return "\n".join(lines)


# -- reading -------------------------------------------------------------------------------------------------------------
def _name(package: Path, file: Path) -> str:
    parts = (package.name, *file.relative_to(package).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _papers(tree: ast.Module) -> frozenset[str]:
    """What the decorators `@recipe(...)` name as their paper."""
    found = set()
    for node in ast.walk(tree):
        for made in getattr(node, "decorator_list", []):
            if isinstance(made, ast.Call) and getattr(made.func, "id", "") == "recipe":
                named = [k.value for k in made.keywords if k.arg == "paper"]
                found |= {str(getattr(value, "value", "")) for value in named} or {""}
    return frozenset(found)


def _imports(name: str, node: ast.AST, files: Mapping[str, Path]) -> list[tuple[str, str, str]]:
    """(module, name, what it is called here) of an import statement; the name is "" where the module itself is imported."""
    if isinstance(node, ast.Import):
        return [(alias.name, "", alias.asname or alias.name) for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        parts = name.split(".") if files[name].name == "__init__.py" else name.split(".")[:-1]
        base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
    return [(base, alias.name, alias.asname or alias.name) for alias in node.names]


def _handed_on(name: str, tree: ast.Module, files: Mapping[str, Path]) -> dict[str, tuple[str, str]]:
    """{name here: (module, name there)} of a module's own imports."""
    return {here: (module, there) for node in tree.body for module, there, here in _imports(name, node, files)}


def _source(
    module: str, name: str, files: Mapping[str, Path], makes: Mapping[str, Mapping[str, tuple[str, str]]]
) -> str:  # fmt: skip
    """The module that makes a name, through any packages that hand it on."""
    if f"{module}.{name}" in files:
        return f"{module}.{name}"
    if name in makes.get(module, {}) and files[module].name == "__init__.py":
        return _source(*makes[module][name], files, makes)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    from whet.papers import papers

    package = Path(__file__).parents[1] / "src" / "whet"
    print(table(by_paper(modules(package), "whet"), {p.slug: p.family for p in papers()}))


if __name__ == "__main__":
    main()
