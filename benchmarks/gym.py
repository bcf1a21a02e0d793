"""Every data set of reasoning-gym through our interface: does its own scorer give its gold answers 1?

python -m benchmarks.gym [--n 30] [--seconds 20] [--out results/gym.md]

At the default configuration `n` problems of train are scored, at every level of the library's curriculum as many as fit
into `seconds`. It needs one core, and half an hour of it if that is busy: a few sets search
for seconds, and two levels do not finish.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from whet.errors import WhetError
from whet.tasks.gym import DISAGREEING_LEVELS, KNOWN_DISAGREEMENTS, NO_GOLD, Gym, gym_names
from whet.tasks.verify import gold_response


def scores(task: Gym, n: int, seconds: float) -> tuple[list[float | None], str]:
    """The score of each gold answer (None where a problem has none), and why they stopped before `n`.

    NaN is a scorer that raised. A configuration that the library refuses ends them too.
    """
    found: list[float | None] = []
    ends = time.monotonic() + seconds
    for i in range(n):
        if time.monotonic() > ends:
            return found, "slow"
        try:
            problem = task.problem("train", i)
        except WhetError as refusal:
            return found, str(refusal).partition("': ")[2] or str(refusal)
        found.append(None if problem.answer is None else task.verify(problem, gold_response(problem)).value)
    return found, ""


def measure(name: str, n: int, seconds: float) -> dict[str, Any]:
    """One row: the default configuration, then all levels together."""
    began = time.monotonic()
    default, _ = scores(Gym(name), n, float("inf"))
    seconds_each = (time.monotonic() - began) / n
    levels = Gym(name).levels if has_levels(name) else ()
    right, total, low, notes = 0, 0, 1.0, []
    for level in levels:
        found, stopped = scores(Gym(name, level), n, seconds)
        judged = [s for s in found if s is not None]
        right, total = right + sum(s == 1.0 for s in judged), total + len(judged)
        low = min([low, *judged])
        if not all(s == 1.0 for s in judged):
            notes.append(f"level {level}: {sum(s == 1.0 for s in judged)} of {len(judged)}")
        if stopped and stopped != "slow":
            notes.append(f"level {level}: {stopped}")
        elif not found:
            notes.append(f"level {level}: no problem within {seconds:g} s")
    if name in NO_GOLD:
        notes.insert(0, "no gold answer")
    if name in KNOWN_DISAGREEMENTS or name in DISAGREEING_LEVELS:
        notes.insert(0, "known disagreement")
    judged = [s for s in default if s is not None]
    return {
        "data set": name,
        "default: gold scored 1": f"{sum(s == 1.0 for s in judged)} of {len(judged)}",
        "lowest": f"{min(judged):g}" if judged else "-",
        "levels": len(levels) or "-",
        "levels: gold scored 1": f"{right} of {total}" if total else "-",
        "lowest ": f"{low:g}" if total else "-",
        "ms a problem": f"{1000 * seconds_each:.0f}",
        "notes": "; ".join(notes).replace("|", "/"),
    }


def has_levels(name: str) -> bool:
    """Whether the library has a curriculum for the set."""
    try:
        Gym(name, level=1)
    except WhetError:
        return False
    return True


def verdict(row: dict[str, Any]) -> str:
    """`right`, `no gold`, or what is wrong with a row."""
    if row["lowest"] == "-":
        return "no gold"
    return "right" if {row["lowest"], row["lowest "]} <= {"1", "-"} else "disagrees"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=30, help="problems of the default configuration, and of each level")
    parser.add_argument("--seconds", type=float, default=20, help="at most for each level")
    parser.add_argument("--out", type=Path, default=Path("results/gym.md"))
    arguments = parser.parse_args()
    rows = []
    for name in gym_names():
        rows.append(measure(name, arguments.n, arguments.seconds))
        print(rows[-1], flush=True)
    counts = Counter(map(verdict, rows))
    head = (
        f"`python -m benchmarks.gym --n {arguments.n} --seconds {arguments.seconds:g}`: {len(rows)} data sets of "
        f"reasoning-gym {version('reasoning-gym')}. Gold answers all score 1 in {counts['right']}; "
        f"{counts['no gold']} have none ({', '.join(NO_GOLD)}); in {counts['disagrees']} the library's scorer disagrees with "
        "its own gold answers. Problems are of train, seed 0. A note says where the library refuses or does not finish a "
        "level of its own curriculum.\n\n"
    )
    names = list(rows[0])
    lines = [" | ".join(names), "|".join(["---"] * len(names)), *(" | ".join(map(str, r.values())) for r in rows)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(head + "\n".join(f"| {line} |" for line in lines) + "\n")


if __name__ == "__main__":
    main()
