"""The data-sheet of a base: accuracy, pass@k and ended share of each task and level, on test, from one command.

    whet base sheet --out results/base
    whet base sheet --model micro --out results/micro

A cell is one JSON file and is never measured twice for the same weights, so the command can be stopped and called again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from whet.bases import describe
from whet.errors import WhetError
from whet.evaluation.evaluate import Evaluator, Plan
from whet.models import base
from whet.models.policy import Policy
from whet.tasks import Task, get_task, task_names
from whet.training.checkpoint import write_atomic

MASTERED, HEADROOM, BEYOND = 0.8, 0.3, 0.1
KINDS = ("mastered", "headroom", "headroom (sampled)", "beyond")
# Variants that studies rely on and that the levels leave out. (`countdown:trace=search` is not among them: its problems
# are countdown's, only demonstrations differ.)
VARIANTS = (
    "word-problem:level=2,lang=fr",
    "logic:level=1,form=choice",
    "logic:level=5,form=choice",
    "facts:level=1,form=open",
    "facts:level=4,kind=twohop",
    "finance:level=4,subtask=interest",
)
GUESSES = 2000  # problems of train whose answers a guesser knows
Cell = dict[str, Any]


def learnt() -> list[str]:
    """The tasks that the shipped base has seen."""
    seen = {row["task"].partition(":")[0] for row in describe("base")["mixture"]}
    return [name for name in task_names() if name in seen]


def specs(names: Sequence[str]) -> Iterator[str]:
    """Every level of each task; a name that has its level is itself."""
    for name in names:
        if "level=" in name:
            yield name
        else:
            yield from (f"{name}{',' if ':' in name else ':'}level={level}" for level in get_task(name).levels)


def measure(
    policy: Policy, out: Path, *, names: list[str] | None = None, n: int = 512, k: int = 16,
    tell: Callable[[str], None] | None = None,
) -> list[Cell]:  # fmt: skip
    """Measure what is missing and return the cells asked for (`names` None: all levels of what the
    shipped base has learnt, and `VARIANTS`).

    After each cell `sheet.md` is written from all cells in `out` that belong to these weights, n and k.
    """
    out.mkdir(parents=True, exist_ok=True)
    weights = base.weights_hash(policy.model)
    usual = [*specs(learnt()), *VARIANTS]
    asked = list(specs(names)) if names else usual
    everything = dict.fromkeys([*usual, *asked])

    def known(spec: str) -> Cell | None:
        file = place(out, spec)
        cell = json.loads(file.read_text()) if file.exists() else {}
        if (cell.get("hash"), cell.get("n"), cell.get("k")) != (weights, n, k):
            return None
        return cell if "guess" in cell else {**cell, "guess": guess(get_task(spec), n, k)}

    def write_sheet() -> None:
        text = sheet([found[s] for s in everything if s in found], [s for s in everything if s not in found])
        write_atomic(out / "sheet.md", text)

    found = {spec: cell for spec in everything if (cell := known(spec))}
    for spec in asked:
        if spec not in found:
            summary, _ = Evaluator(get_task(spec), Plan(n=n, k=k)).test(policy)
            chance = guess(get_task(spec), n, k)
            found[spec] = {"task": spec, "hash": weights, "n": n, "k": k, **summary, "guess": chance}
            write_atomic(place(out, spec), json.dumps(found[spec], indent=1))
            write_sheet()
        if tell:
            tell(line(found[spec]))
    write_sheet()
    return [found[spec] for spec in asked]


def place(out: Path, spec: str) -> Path:
    """The file of a cell."""
    return out / f"{spec.replace(':', '-').replace('=', '').replace(',', '-')}.json"


def guess(task: Task, n: int, k: int) -> dict[str, float]:
    """What guessing gets on the first `n` test problems: the accuracy of one guess and pass@k of `k` of them.

    A guesser names one of the choices where they are always the same or all stand in the prompt, and otherwise repeats
    the answer of a problem of train. A lower bound, therefore: it does not look for the answer in the text.
    """
    train = task.problems("train", GUESSES)
    answers = Counter(p.answer for p in train)
    fixed = len({p.choices for p in train}) == 1
    chances = [
        1 / len(p.choices)
        if p.choices and (fixed or all(c in p.prompt for c in p.choices))
        else answers[p.answer] / len(train)
        for p in task.problems("test", n)
    ]
    reach = sum(1 - (1 - p) ** k for p in chances)
    return {"accuracy": sum(chances) / len(chances), f"pass@{k}": reach / len(chances)}


def kinds(cell: Mapping[str, Any]) -> list[str]:
    """What a level is good for: forgetting (mastered), improvement (headroom), limits (beyond).

    Headroom is counted from the greedy accuracy; `headroom (sampled)` is a level that has it only over the accuracy of
    single samples, where a method can sharpen what greedy decoding already does.
    """
    reach = cell[f"pass@{cell['k']}"]["value"]
    greedy, sampled = cell["accuracy"]["value"], cell["sampled_accuracy"]["value"]
    holds = {
        "mastered": greedy >= MASTERED,
        "headroom": reach - greedy >= HEADROOM,
        "headroom (sampled)": reach - sampled >= HEADROOM > reach - greedy,
        "beyond": reach <= BEYOND,
    }
    return [name for name in KINDS if holds[name]]


def line(cell: Mapping[str, Any]) -> str:
    """One row of the table."""
    k = f"pass@{cell['k']}"
    a, s, p = (cell[name] for name in ("accuracy", "sampled_accuracy", k))
    shown = f"{a['value']:.3f} [{a['low']:.3f}, {a['high']:.3f}] | {s['value']:.3f} | {p['value']:.3f}"
    rest = f"{cell['guess'][k]:.3f} | {cell['ended']:.3f} | {cell['tokens_per_answer']:.0f}"
    return f"| {cell['task']} | {shown} | {rest} | {', '.join(kinds(cell))} |"


def sheet(cells: Sequence[Mapping[str, Any]], missing: Sequence[str] = ()) -> str:
    """The data-sheet as Markdown: what the levels of each task are good for, then every cell."""
    if not cells:
        raise WhetError("a data-sheet needs at least one task")
    n, k = cells[0]["n"], cells[0]["k"]
    parts = [
        f"Measured on test, n = {n} a cell, {k} samples at temperature 1, weights {cells[0]['hash']}. "
        f"*mastered*: greedy accuracy >= {MASTERED}; *headroom*: pass@{k} - greedy accuracy >= {HEADROOM}; "
        f"*headroom (sampled)*: not so, but pass@{k} - sampled accuracy >= {HEADROOM}; *beyond*: pass@{k} <= {BEYOND}. "
        f"*guessing* is pass@{k} of {k} guesses without reading: one of the choices where the prompt names them or they "
        "are always the same, else the answer of some problem of train.",
        overview(cells),
        f"| task | greedy accuracy [95 %] | sampled accuracy | pass@{k} | guessing | ended | tokens | |\n"
        + "|---" * 8 + "|\n" + "\n".join(map(line, cells)),
    ]  # fmt: skip
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}. The same command goes on.")
    return "\n\n".join(parts) + "\n"


def overview(cells: Sequence[Mapping[str, Any]]) -> str:
    """For each task the levels of each kind, and why no level is beyond reach where guessing alone reaches more."""
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        tasks.setdefault(family(cell["task"]), []).append(cell)
    rows = ["| task | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    for task, members in tasks.items():
        levels = {kind: [level(c["task"]) for c in members if kind in kinds(c)] for kind in KINDS}
        shown = {kind: ", ".join(found) or "-" for kind, found in levels.items()}
        if not levels["beyond"]:
            shown["beyond"] = by_chance(members) or "-"
        rows.append(f"| {task} | " + " | ".join(shown.values()) + " |")
    return "\n".join(rows)


def by_chance(cells: Sequence[Mapping[str, Any]]) -> str:
    """Why none of these levels can be beyond reach; empty where one can."""
    k = f"pass@{cells[0]['k']}"
    chance = min((c["guess"] for c in cells), key=lambda guess: guess[k])  # at the level that is hardest to guess
    if chance[k] <= BEYOND:
        return ""
    return f"cannot exist: guessing alone has {k} {chance[k]:.2f} (one guess {chance['accuracy']:.2f}) or more"


def family(spec: str) -> str:
    """A spec without its level."""
    name, _, options = spec.partition(":")
    rest = ",".join(part for part in options.split(",") if not part.startswith("level="))
    return f"{name}:{rest}" if rest else name


def level(spec: str) -> str:
    """The level of a spec."""
    return next(part.partition("=")[2] for part in spec.partition(":")[2].split(",") if part.startswith("level="))
