"""Tasks read from files: JSON Lines, a JSON list, or a Hub data set.

A file is read once to check every row; of each row only its place is kept (byte offset and line number, by split) and
the row is parsed again when it is asked for. So a large JSONL file costs 16 bytes a row, beside a digest for each
prompt while it is read. A `.json` list is held in memory; a Hub data set stays on disk (memory-mapped by `datasets`).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import warnings
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from whet.errors import WhetError
from whet.tasks.answers import plain_number
from whet.tasks.problem import Problem, Response, Split, Verdict
from whet.tasks.rows import identity, problem_of
from whet.tasks.task import SPLITS, Task, split_of
from whet.tasks.verify import Verifier, get_verifier


class Source(Protocol):
    """Rows with a handle each, by which one row is read again."""

    name: str

    def scan(self) -> Iterator[tuple[int, int, Any]]:
        """(handle, number from 1, parsed row) of each row."""
        ...

    def where(self, number: int) -> str: ...

    def read(self, places: list[tuple[int, int]]) -> list[Any]:
        """The parsed rows at some (handle, number)."""
        ...


class Lines:
    """A JSON Lines file; a handle is a byte offset."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._stamp = self._now()

    def _now(self) -> tuple[int, int]:
        found = self.path.stat()
        return found.st_size, found.st_mtime_ns

    def where(self, number: int) -> str:
        return f"{self.path}:{number}"

    def scan(self) -> Iterator[tuple[int, int, Any]]:
        offset = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip(b" \t\r\n\xef\xbb\xbf"):
                    yield offset, number, _loads(line, self.where(number))
                offset += len(line)

    def read(self, places: list[tuple[int, int]]) -> list[Any]:
        if self._now() != self._stamp:
            raise WhetError(f"{self.path} changed while it was in use; start again")
        rows: list[Any] = []
        with self.path.open("rb") as file:
            for offset, number in places:
                file.seek(offset)
                rows.append(_loads(file.readline(), self.where(number)))
        return rows


class Listed:
    """Rows in a sequence (a parsed JSON list, or a data set of the Hub); a handle is an index."""

    def __init__(self, name: str, rows: Any) -> None:
        self.name, self.rows = name, rows

    def where(self, number: int) -> str:
        return f"{self.name}: row {number}"

    def scan(self) -> Iterator[tuple[int, int, Any]]:
        for index, row in enumerate(self.rows):
            yield index, index + 1, row

    def read(self, places: list[tuple[int, int]]) -> list[Any]:
        return [self.rows[index] for index, _ in places]


@dataclass
class Places:
    """Where the rows of one split are: which source, and handle and number of each row in it."""

    source: Source
    handles: array[int] = field(default_factory=lambda: array("Q"))
    numbers: array[int] = field(default_factory=lambda: array("Q"))

    def read(self, part: slice) -> list[tuple[int, Any]]:
        """(number, row) of some of them."""
        chosen = list(zip(self.handles[part], self.numbers[part], strict=True))
        return list(zip((number for _, number in chosen), self.source.read(chosen), strict=True))


class FileTask(Task):
    """A task whose problems are the rows of files. Made by `read_files`.

    Attributes:
        verifier_name: what judges answers (`number`, `choice`, `exact` ...), or "" where the rows have no answer.
        fingerprint: a hash of all rows and the split each file was named for.
    """

    def __init__(
        self,
        spec: str,
        name: str,
        main: Source,
        held: dict[Split, Source],
        verifier: str | Verifier | None = None,
    ) -> None:
        self.name, self._spec, self._named = name, spec, set(held)
        self._places: dict[Split, Places] = {split: Places(held.get(split, main)) for split in SPLITS}
        seen = self._scan(main, held)
        self._provided = seen.provides()
        if verifier is None:
            verifier = seen.verifier()
        elif seen.rows:
            self._provided.add("verifier")
        self._verifier = get_verifier(verifier) if verifier else None
        self.verifier_name: str = verifier if isinstance(verifier, str) else getattr(verifier, "__name__", "function")
        self._longest = seen.longest
        self.fingerprint: str = seen.digest.hexdigest()
        counts = ", ".join(f"{split} {len(self._places[split].handles)}" for split in SPLITS)
        how = "by file" if len(held) == 2 else "split 80/10/10 by a hash of the prompt"
        if len(held) == 1:
            how = f"{next(iter(held))} by file, the others by a hash of the prompt"
        self.description = f"{seen.rows} rows of {spec} ({counts}; {how})"

    def problems(self, split: Split, n: int | None = None, *, seed: int = 0, start: int = 0) -> list[Problem]:
        """Rows of a split in the order of the file (whatever the seed); fewer than `n` where the split ends."""
        places = self._there(split)
        rows = places.read(slice(start, len(places.handles) if n is None else start + n))
        return [
            replace(
                problem_of(row, places.source.where(number)), id=f"{self.name}/{split}/{number}", task=str(self.name)
            )
            for number, row in rows
        ]

    def pool(self, split: Split, n: int | None = None, *, seed: int = 0) -> Sequence[Problem]:
        """The rows of a split, each parsed when it is asked for and not kept."""
        there = len(self._there(split).handles)
        return Pool(self, split, there if n is None else min(n, there))

    def _there(self, split: Split) -> Places:
        if split not in self._places:
            raise WhetError(f"there is no split '{split}'; there are {', '.join(SPLITS)}")
        places = self._places[split]
        if not places.handles:
            hint = "" if split == "train" else f" with --{split}"
            raise WhetError(
                f"task '{self._spec}' has no {split} problems ({self.description}); add rows, or name a file{hint}"
            )
        return places

    def verify(self, problem: Problem, response: Response) -> Verdict:
        if self._verifier is None:
            raise WhetError(
                f"task '{self._spec}' cannot be verified: its rows have no answer; add the field, or name a verifier "
                "of your own with --verifier module.py:function"
            )
        return self._verifier(problem, response)

    def verify_all(self, pairs: Sequence[tuple[Problem, Response]]) -> list[Verdict]:
        several = getattr(self._verifier, "several", None)  # of verifiers that ask child processes
        return several(pairs) if several else super().verify_all(pairs)

    def where(self, problem: Problem) -> str:
        """File and line of a problem, for messages."""
        _, split, number = problem.id.rsplit("/", 2)
        return self._places[split].source.where(int(number))  # pyright: ignore[reportArgumentType]

    def provides(self) -> set[str]:
        return set(self._provided)

    def spec(self) -> str:
        return self._spec

    def max_answer_tokens(self) -> int:
        """The characters of the longest rationale and answer (a token has one or more), from 64 to 2048."""
        return min(max(64, self._longest + 24), 2048)

    def _scan(self, main: Source, held: dict[Split, Source]) -> _Seen:
        """One pass over all rows. Held-out files come first: a prompt they hold is left out of the others."""
        seen = _Seen()
        order: list[tuple[Split | None, Source]] = [(s, held[s]) for s in ("test", "validation") if s in held]
        for named, source in [*order, (None, main)]:
            n = left_out = 0
            for handle, number, row in source.scan():
                problem = problem_of(row, source.where(number))
                split = named or self._hashed(identity(problem))
                n += 1
                if seen.add(problem, row, named or "train", split, source.where(number)):
                    self._places[split].handles.append(handle)
                    self._places[split].numbers.append(number)
                else:
                    left_out += 1
            if not n:
                raise WhetError(f"{source.name} has no rows; give it one JSON object a line")
            if left_out:
                message = f"{source.name}: left out {left_out} rows whose prompt is in a held-out file"
                warnings.warn(message, stacklevel=4)
        if seen.conflicts:
            warnings.warn(
                f"{len(seen.conflicts)} prompts have rows with different answers, the first at {seen.conflicts[0]}",
                stacklevel=4,
            )
        return seen

    def _hashed(self, key: object) -> Split:
        split = split_of(key)
        return "train" if split in self._named else split


class Pool(Sequence[Problem]):
    """The first `size` rows of a split."""

    def __init__(self, task: FileTask, split: Split, size: int) -> None:
        self._task, self._size = task, size
        self._split: Split = split

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(self._size))]
        place = range(self._size)[at]  # from the end too, and an IndexError behind it
        return self._task.problems(self._split, 1, start=place)[0]


class _Seen:
    """What one pass over the rows finds out."""

    def __init__(self) -> None:
        self.rows = self.longest = 0
        self.answers = self.numbers = self.choices = self.rationales = self.preferences = 0
        self.plans = self.choice_rationales = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self.conflicts: list[str] = []
        self._prompts: dict[bytes, tuple[Split, bytes]] = {}  # digest of the prompt: its split and answer

    def add(self, problem: Problem, row: Any, file: str, split: Split, where: str) -> bool:
        """Count a row; False where its prompt belongs to another split."""
        self.digest.update(json.dumps([file, row], sort_keys=True, default=str).encode())
        key = hashlib.blake2b(repr(identity(problem)).encode(), digest_size=12).digest()
        answer = hashlib.blake2b(repr((problem.answer, problem.chosen)).encode(), digest_size=8).digest()
        first_split, first_answer = self._prompts.setdefault(key, (split, answer))
        if first_split != split:
            return False
        if first_answer != answer:
            self.conflicts.append(where)
        self.rows += 1
        self.answers += problem.answer is not None
        self.numbers += problem.answer is not None and plain_number(problem.answer) is not None
        self.choices += bool(problem.choices)
        self.rationales += bool(problem.steps)
        self.plans += bool(problem.plan)
        self.choice_rationales += bool(problem.choice_rationales)
        self.preferences += problem.chosen is not None
        self.longest = max(self.longest, len(problem.rationale) + len(problem.answer or problem.chosen or ""))
        return True

    def provides(self) -> set[str]:
        """What every row has."""
        counted = {"verifier": self.answers, "demonstrations": self.answers, "rationales": self.rationales,
                   "plans": self.plans, "choices": self.choices,
                   "choice rationales": self.choice_rationales, "preferences": self.preferences}  # fmt: skip
        return {name for name, count in counted.items() if count == self.rows}

    def verifier(self) -> str:
        if not self.answers:
            return ""
        return "choice" if self.choices == self.rows else "number" if self.numbers == self.answers else "exact"


def is_file_spec(spec: str) -> bool:
    """Whether `spec` names a file (`.jsonl`, `.json`, or any path that exists) or a Hub data set (`hub:ORG/NAME`)."""
    if spec.startswith("hub:") or spec.endswith((".jsonl", ".json")):
        return True
    try:
        return Path(spec).expanduser().exists()
    except (OSError, RuntimeError):  # no path at all: too long, or the home of nobody
        return False


def read_files(
    spec: str,
    verifier: str | Verifier | None = None,
    validation: str | None = None,
    test: str | None = None,
) -> FileTask:
    """The task of a file or a Hub data set. What rows may look like: `whet.tasks.rows`.

    Args:
        spec: a `.jsonl` or `.json` path, or `hub:ORG/NAME[@config]` (its train split, or its only one).
        verifier: see `get_verifier`; None: `choice` if the rows have choices, `number` if all answers are numbers,
            else `exact`.
        validation, test: a file each (or the name of a split of the Hub data set); None: the Hub data set's own split
            of that name, else 10 % of the rows by a hash of the prompt. Equal prompts are always in one split.

    Raises:
        WhetError: with file, line and field, for a row that cannot be used.
    """
    held: dict[Split, Source] = {}
    splits: Any = {}
    if spec.startswith("hub:"):
        splits = _hub(spec)
        main_name = "train" if "train" in splits else next(iter(splits))
        if len(splits) > 1 and "train" not in splits:
            raise WhetError(f"'{spec}' has no train split but {', '.join(splits)}; name a data set that has one")
        main: Source = Listed(f"{spec} [{main_name}]", splits[main_name])
        name = spec.rstrip("/").rpartition("/")[2].replace("@", "-")
    else:
        main, name = _open(spec), Path(spec).stem
    named: list[tuple[Split, str | None]] = [("validation", validation), ("test", test)]
    for split, given in named:
        source = given or (split if split in splits and len(splits) > 1 else None)
        if source is not None:
            held[split] = Listed(f"{spec} [{source}]", splits[source]) if source in splits else _open(source)
    return FileTask(spec, name, main, held, verifier)


def _open(text: str) -> Source:
    try:
        path = Path(text).expanduser()
        there = path.is_file()
    except (OSError, RuntimeError) as problem:
        raise WhetError(f"'{text}' cannot be a path ({problem}); name a .jsonl or .json file") from None
    if not there:
        raise WhetError(f"'{text}' is {'a folder' if path.is_dir() else 'not there'}; name a .jsonl or .json file")
    if path.suffix not in (".jsonl", ".json"):
        raise WhetError(f"'{text}' is not a .jsonl or .json file; write one JSON object a line into a .jsonl file")
    if path.suffix == ".json":
        with path.open("rb") as file:
            listed = file.read(4096).lstrip(b" \t\r\n\xef\xbb\xbf").startswith(b"[")
        if listed:
            return Listed(text, _loads(path.read_bytes(), text))
    return Lines(path)


def _hub(spec: str) -> Any:
    """The splits of a Hub data set, or of a local folder that `datasets` can read."""
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise WhetError(f"'{spec}' needs the datasets library: pip install 'whet[data]'") from None
    name, _, config = spec.removeprefix("hub:").partition("@")
    try:
        return datasets.load_dataset(name, config or None)
    except Exception as problem:  # the library raises errors of every kind; all of them mean that it is not there
        raise WhetError(f"'{spec}' cannot be loaded: {type(problem).__name__}: {problem}") from problem


def _loads(data: bytes, where: str) -> Any:
    def refuse(constant: str) -> Any:
        raise WhetError(f"{where}: {constant} is not a JSON value; write null or a number")

    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=refuse)
    except json.JSONDecodeError as problem:
        place = f"line {problem.lineno} column {problem.colno}" if problem.lineno > 1 else f"column {problem.colno}"
        raise WhetError(f"{where}: not valid JSON at {place} ({problem.msg}); write one JSON object a line") from None
    except UnicodeDecodeError as problem:
        raise WhetError(f"{where}: not UTF-8 at byte {problem.start}; save the file as UTF-8") from None
    except (ValueError, RecursionError) as problem:  # an integer of thousands of digits, brackets nested too deep
        raise WhetError(f"{where}: not JSON that can be read ({problem}); mend or drop the row") from None
