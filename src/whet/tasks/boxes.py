"""boxes: entity tracking: what is in a box after things were moved and boxes swapped."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from whet.errors import WhetError
from whet.seeds import rng_for
from whet.tasks.problem import Problem, Response, Step, Verdict
from whet.tasks.task import split_of
from whet.tasks.traced import (
    Slip,
    Traced,
    Transform,
    Unreadable,
    carried,
    cycle,
    picks,
    plain,
    redressed,
    unparseable,
    wrong,
)

LEVELS = {1: (5, 0), 2: (4, 1), 3: (4, 2), 4: (5, 3), 5: (6, 4), 6: (9, 9)}  # boxes, changes
# from this level on the fullest box is asked for: which of nine boxes can be guessed, its three objects cannot
FULLEST = 6
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NAMES = """
    apple ball bell bird book bread cake card coat coin cup dish doll drum egg fan fish flag fork game glass hat key
    knife lamp leaf map milk note pen pipe plate ring rock rope rose shell shirt shoe spoon stone tea tie watch
"""
OBJECTS = tuple(_NAMES.split())
NOTHING = "nothing"
Variable = Literal["position", "object", "label"]
Contents = dict[str, tuple[str, ...]]
_WORDS = {*OBJECTS, NOTHING}


class State(NamedTuple):
    contents: Contents
    written: dict[str, int]  # box -> index of the step that last wrote it
    change: int  # of data["changes"], the next one
    final: str | None
    lines: int


class Boxes(Traced):
    """`apple in Q, key in B, cup in C. swap Q B. cup to B. in B?` with the rationale `swap Q B: Q key, B apple`,
    `cup to B: C nothing, B apple cup`, `B: apple cup`.

    Args:
        level: a level, or a range.
        boxes: how many boxes (3 to 9) where it is not to be the level's; circuit studies use level 1 with 5 to 7.

    Tests: binding of objects to boxes and keeping it through changes. Letters and objects are drawn anew each time.
    Levels: 1 a look-up among 5 boxes; 2 four boxes and one change (a swap of two boxes or a move of one object); 3
    four and two; 4 five and three; 5 six and four; 6 nine and nine, and the fullest box is asked for. A box may come to
    hold several objects, or nothing.
    Verifier: the set of objects, in any order, each once; parts `precision` and `recall`.
    Errors: lookup (another box is read), stale (a change is written without effect), half (only one of its boxes
    changes), skip (a change is left out), copy (another box or object than the one named is taken).
    Skills: swap, move, lookup. Choices: what the boxes hold in the end; the rationale of a choice says which way each
    of its objects went (`key B > Q`). `counterfactual` makes the pairs of activation-patching studies.
    """

    name = "boxes"
    levels = tuple(LEVELS)
    default_level = 2
    description = "what is in a box after 0 to 9 moves and swaps among 4 to 9 boxes"

    def __init__(self, level: int | str | None = None, boxes: int | str | None = None) -> None:
        if boxes is not None and not (str(boxes).isdecimal() and 3 <= int(boxes) <= 9):
            raise WhetError(f"task 'boxes' takes 3 to 9 boxes, not '{boxes}'")
        super().__init__(level, **({} if boxes is None else {"boxes": str(boxes)}))
        self.boxes = None if boxes is None else int(boxes)

    def draw(self, rng: random.Random, level: int) -> tuple[Any, ...]:
        """(boxes, objects, changes, index of the box asked for); a change is ("swap", box, box) or ("move", object,
        box), all by index."""
        count, wanted = LEVELS[level]
        n, uniform = self.boxes or count, rng.random
        # Things lie in piles, and a swap exchanges two piles: a test problem takes ten draws, so no change walks over all.
        pile = list(range(n))  # object -> pile
        box, at = list(range(n)), list(range(n))  # pile -> box, box -> pile
        changes: list[tuple[str, int, int]] = []
        touched: list[int] = []
        while len(changes) < wanted:
            i, j = int(uniform() * n), int(uniform() * n)
            if i == j:
                continue
            if uniform() < 0.5:
                changes.append(("swap", i, j))
                at[i], at[j] = at[j], at[i]
                box[at[i]], box[at[j]] = i, j
                touched += (i, j)
            elif (source := box[pile[i]]) != j:
                changes.append(("move", i, j))
                touched += (source, j)
                pile[i] = at[j]
        if level >= FULLEST:
            asked = box[max(pile, key=pile.count)]
        elif touched and uniform() < 0.8:  # mostly a box that something happened to: the first look is not enough
            asked = touched[int(uniform() * len(touched))]
        else:
            asked = int(uniform() * n)
        return tuple(picks(rng, 26, n)), tuple(picks(rng, len(OBJECTS), n)), tuple(changes), asked

    def build(self, parameters: tuple[Any, ...], level: int) -> Problem:
        letters, objects, changes, asked = parameters
        boxes = tuple(LETTERS[i] for i in letters)
        things = tuple(OBJECTS[i] for i in objects)
        told = tuple((kind, boxes[i] if kind == "swap" else things[i], boxes[j]) for kind, i, j in changes)
        data = {"boxes": boxes, "objects": things, "changes": told, "asked": boxes[asked], "reversed": False}
        return self.word({**data, "wording": 0, "filler": 0}, level)

    def extras(self, data: Mapping[str, Any], steps: Sequence[Step], state: State) -> dict[str, Any]:
        routes, told = _routes(data), {}
        for box in (data["asked"], *data["boxes"]):  # the asked one speaks for those that hold the same: nothing
            held = state.contents[box]
            told.setdefault(" ".join(held) or NOTHING, ", ".join(routes[x] for x in held) or f"{box} empty")
        # in the order of the boxes, so that the place of the right choice says nothing
        choices = tuple(dict.fromkeys(" ".join(state.contents[box]) or NOTHING for box in data["boxes"]))
        return {"choices": choices, "choice_rationales": tuple(told[c] for c in choices)}

    def prompt(self, data: Mapping[str, Any]) -> str:
        pairs = list(zip(data["objects"], data["boxes"], strict=True))
        if data["reversed"]:
            pairs.reverse()
        if data["wording"] == 0:
            changes = "".join(f"swap {a} {b}. " if k == "swap" else f"{a} to {b}. " for k, a, b in data["changes"])
            return f"{', '.join(f'{x} in {box}' for x, box in pairs)}. {changes}in {data['asked']}?"
        changes = "".join(
            f"{a} and {b} change places. " if k == "swap" else f"{b} gets the {a}. " for k, a, b in data["changes"]
        )
        return f"{', '.join(f'{box} has the {x}' for x, box in pairs)}. {changes}what has {data['asked']}?"

    def plan(self, data: Mapping[str, Any]) -> str:
        return " ".join(["swap," if k == "swap" else "move," for k, _, _ in data["changes"]] + ["look up"])

    def category(self, data: Mapping[str, Any], level: int) -> str:
        return f"changes-{len(data['changes'])}"

    def verify(self, problem: Problem, response: Response) -> Verdict:
        given = _things(response.answer)
        if given is None:
            return unparseable("not a list of known objects")
        gold = _things(problem.answer) or []
        hits = len({*given} & {*gold})
        parts = {"precision": hits / len(given), "recall": hits / len(gold)}
        label = " ".join(sorted(given))
        if sorted(given) == sorted(gold):
            return Verdict(1.0, "ok", parts, label=label)
        return wrong(f"{problem.data['asked']} holds {problem.answer}, not {' '.join(given)}", parts, label)

    # -- the machine ---------------------------------------------------------------------------------------------------
    def start(self, data: Mapping[str, Any]) -> State:
        return State({b: (x,) for b, x in zip(data["boxes"], data["objects"], strict=True)}, {}, 0, None, 0)

    def write(self, data: Mapping[str, Any], state: State) -> tuple[Step, State] | None:
        if state.final is not None:
            return None
        if state.change == len(data["changes"]):
            return _look(data["asked"], state.contents[data["asked"]], state)
        change = data["changes"][state.change]
        new = _changed(state.contents, change)
        if new is None:  # a slip has lost the object to move
            return None
        return _tell(change, new, state, state.change + 1)

    def slips(self, data: Mapping[str, Any], state: State, rng: random.Random) -> Iterator[Slip]:
        changes, contents, asked = data["changes"], state.contents, data["asked"]
        if state.final is not None:
            return
        if state.change == len(changes):
            for box in contents:
                if contents[box] != contents[asked]:
                    yield Slip("lookup", *_look(asked, contents[box], state))
            return
        change = changes[state.change]
        new = _changed(contents, change)
        if new is None:
            return
        stale = {box: contents[box] for box in new}
        if stale != new:
            yield Slip("stale", *_tell(change, stale, state, state.change + 1))
        for box in new:
            half = {**new, box: contents[box]}
            if half not in (stale, new):
                yield Slip("half", *_tell(change, half, state, state.change + 1))
        kind, a, b = change
        things = data["boxes"] if kind == "swap" else data["objects"]
        miscopied = [(kind, x, b) for x in things if x not in (a, b)] + [
            (kind, a, box) for box in contents if box not in (a, b)
        ]
        for other in miscopied:
            taken = _changed(contents, other)
            if taken is not None and not any(_is_told(_head(other), c) for c in changes[state.change :]):
                yield Slip("copy", *_tell(other, taken, state, state.change + 1))
        skipped = self.write(data, state._replace(change=state.change + 1))
        if skipped is not None and not _is_told(skipped[0].text.partition(":")[0], change):
            yield Slip("skip", *skipped)

    def read(self, data: Mapping[str, Any], text: str, state: State) -> tuple[str, State]:
        head, colon, told = (part.strip() for part in text.partition(":"))
        changes, lines = data["changes"], state.lines + 1
        if not colon:
            raise Unreadable(f"format: '{text[:40]}' has no colon")
        if head in state.contents:
            return self._read_look(data, head, told, state)
        at = next((i for i in range(state.change, len(changes)) if _is_told(head, changes[i])), None)
        written = _contents(told)
        if at is None:
            due = f"'{_head(changes[state.change])}' is due" if state.change < len(changes) else "no change is due"
            after = State(
                {**state.contents, **written}, state.written, min(state.change + 1, len(changes)), None, lines
            )
            return f"copy: {due}, not '{head[:40]}'", after
        after = State({**state.contents, **written}, state.written, at + 1, None, lines)
        if at > state.change:
            return f"skip: '{_head(changes[state.change])}' comes first", after
        due = _changed(state.contents, changes[at])
        if due is None or {b: sorted(x) for b, x in due.items()} == {b: sorted(x) for b, x in written.items()}:
            return "", after
        if all(sorted(state.contents.get(box, ())) == sorted(written.get(box, ())) for box in due):
            return "stale: it is written as before the change", after
        if any(sorted(state.contents[box]) == sorted(written.get(box, ())) != sorted(due[box]) for box in due):
            return "half: only one of the two boxes is changed", after
        return f"update: it should be {_listed(due)}", after

    def _read_look(self, data: Mapping[str, Any], box: str, told: str, state: State) -> tuple[str, State]:
        found = _things(told)
        if found is None:
            raise Unreadable(f"format: '{told[:40]}' is not a list of known objects")
        after = state._replace(final=" ".join(found) or NOTHING, lines=state.lines + 1)
        if state.change < len(data["changes"]):
            return f"skip: '{_head(data['changes'][state.change])}' comes first", after
        if box != data["asked"]:
            return f"lookup: {data['asked']} is asked for, not {box}", after
        held = state.contents[box] or (NOTHING,)
        return "" if sorted(found) == sorted(held) else f"lookup: {box} holds {' '.join(held)}", after

    def result(self, data: Mapping[str, Any], state: State) -> str | None:
        return state.final

    # -- transforms and counterfactuals --------------------------------------------------------------------------------
    def transforms(self) -> Mapping[str, tuple[Transform, Transform]]:
        rename = redressed(self.word, lambda d: _relettered(d, 1), lambda d: _relettered(d, -1))
        order = cycle(self.word, "reversed", (False, True))
        return {**super().transforms(), "rename": carried(rename), "order": carried(order)}

    def counterfactual(
        self, problem: Problem, variable: Variable = "position", *, seed: int = 0
    ) -> tuple[Problem, Problem, str]:
        """(base, counterfactual, the answer to base if `variable` were copied over from the counterfactual).

        The counterfactual has other objects and the same letters in another order. It asks for the box at place j,
        while the base asks for place i; the letter it asks for stands at place k of the base, and i, j, k differ. So
        what is expected differs for the three variables, and from the base's own answer: `position` gives the base's
        object at j, `object` the counterfactual's own at j, and `label` the base's at k. (arXiv 2402.14811; problems
        without changes only.)
        """
        data = problem.data
        if data["changes"]:
            raise WhetError("counterfactual pairs need problems without changes: use boxes:level=1")
        boxes, objects = data["boxes"], data["objects"]
        n, i = len(boxes), boxes.index(data["asked"])
        rng = rng_for(seed, "boxes", "counterfactual", boxes, objects, i)
        letters, things = tuple(map(LETTERS.index, boxes)), tuple(map(OBJECTS.index, objects))
        split = split_of((letters, things, (), i))
        while True:
            places, others, j = picks(rng, n, n), picks(rng, len(OBJECTS), n), int(rng.random() * n)
            parameters = (tuple(letters[p] for p in places), tuple(others), (), j)
            # of the base's split, so that a probe of test problems never looks at a training prompt
            if len({i, j, places[j]}) == 3 and not {*things} & {*others} and split_of(parameters) == split:
                break
        made = replace(self.build(parameters, problem.level), id=f"{problem.id}/counterfactual", task=problem.task)
        answers = {"position": objects[j], "object": made.data["objects"][j], "label": objects[places[j]]}
        if variable not in answers:
            raise WhetError(f"a counterfactual copies position, object or label, not '{variable}'")
        return problem, made, answers[variable]


def _changed(contents: Contents, change: tuple[str, str, str]) -> Contents | None:
    """What the boxes that a change touches hold after it."""
    kind, a, b = change
    if kind == "swap":
        return {a: contents[b], b: contents[a]}
    for source, held in contents.items():
        if a in held and source != b:
            return {source: tuple([x for x in held if x != a]), b: (*contents[b], a)}
    return None


def _head(change: tuple[str, str, str]) -> str:
    kind, a, b = change
    return f"swap {a} {b}" if kind == "swap" else f"{a} to {b}"


def _is_told(head: str, change: tuple[str, str, str]) -> bool:
    kind, a, b = change
    return head == _head(change) or (kind == "swap" and head == f"swap {b} {a}")


def _listed(contents: Contents) -> str:
    return ", ".join([f"{box} {' '.join(held) or NOTHING}" for box, held in contents.items()])


def _tell(change: tuple[str, str, str], new: Contents, state: State, after: int) -> tuple[Step, State]:
    contents, written, _, _, line = state
    premises = tuple(sorted({written[box] for box in new if box in written}))
    step = Step(f"{_head(change)}: {_listed(new)}", "update", change[0], premises)
    return step, State(contents | new, written | dict.fromkeys(new, line), after, None, line + 1)


def _look(box: str, held: tuple[str, ...], state: State) -> tuple[Step, State]:
    text = " ".join(held) or NOTHING
    premises = (state.written[box],) if box in state.written else ()
    return Step(f"{box}: {text}", "lookup", "lookup", premises), state._replace(final=text, lines=state.lines + 1)


def _things(text: str | None) -> list[str] | None:
    """The objects of a list; None where it is empty or has another word."""
    words = [w for w in re.split(r"[\s,]+", plain(text or "").strip(" \n.")) if w not in ("", "and")]
    return words if words and all(w in _WORDS for w in words) else None


def _contents(told: str) -> Contents:
    found: Contents = {}
    for part in told.split(","):
        box, *words = part.split() or [""]
        things = _things(" ".join(words))
        if len(box) != 1 or things is None:
            raise Unreadable(f"format: '{part.strip()[:40]}' is not a box and what it holds")
        found[box] = tuple(x for x in things if x != NOTHING)
    return found


def _routes(data: Mapping[str, Any]) -> dict[str, str]:
    """For each object the boxes that it was in, in order: `key B > Q`."""
    at = dict(zip(data["objects"], data["boxes"], strict=True))
    routes = {thing: f"{thing} {box}" for thing, box in at.items()}
    for kind, a, b in data["changes"]:
        if kind == "move":
            moved = {a: b}
        else:
            moved = {thing: b if box == a else a for thing, box in at.items() if box in (a, b)}
        at |= moved
        for thing, box in moved.items():
            routes[thing] += f" > {box}"
    return routes


def _relettered(data: Mapping[str, Any], by: int) -> dict[str, Any]:
    def moved(name: str) -> str:
        return LETTERS[(LETTERS.index(name) + by) % 26] if name in LETTERS else name

    changes = tuple((kind, moved(a), moved(b)) for kind, a, b in data["changes"])
    return {"boxes": tuple(map(moved, data["boxes"])), "changes": changes, "asked": moved(data["asked"])}
