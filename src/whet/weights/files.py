"""Weights on disk, a tensor at a time, and the one map between the names of two models.

`Stored` reads any checkpoint lazily and `Shards` writes one, so that arithmetic on models needs the memory of one shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from whet.errors import WhetError
from whet.models import trust
from whet.models.base import resolve

Shapes = Mapping[str, tuple[int, ...]]
WRAPPERS = ("base_model.model.", "_orig_mod.", "module.")
SHARD = 2 << 30  # bytes
SHOWN = 3  # names in a message


class Stored(Mapping[str, Tensor]):
    """The tensors of a checkpoint, read when they are asked for.

    Args:
        source: a model folder, a run, a shipped base, a Hub name, or a .safetensors file.

    Attributes:
        shapes: of each tensor, known without reading it.
        config: of the model; empty for a bare file.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        self.folder = _folder(source)
        file = self.folder if self.folder.is_file() else None
        found = [file] if file else sorted(self.folder.glob("*.safetensors"))
        for index in (
            [] if file else self.folder.glob("*.safetensors.index.json")
        ):  # beside shards there may lie older files
            found = trust.shards(index)
        if not found:
            bad = trust.pickled(self.folder)
            raise WhetError(trust.refusal(source, bad) if bad else f"'{source}' holds no weights in safetensors")
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.metadata: dict[str, str] = {}
        for path in found:
            with _opened(path) as file_:
                self.metadata |= file_.metadata() or {}
                for name in file_.keys():  # noqa: SIM118 (a file of safetensors is no mapping)
                    self.files[name] = path
                    self.shapes[name] = tuple(file_.get_slice(name).get_shape())
        config = self.folder / "config.json"
        self.config: dict[str, Any] = trust.read_json(config) if not file and config.exists() else {}

    def __getitem__(self, name: str) -> Tensor:
        with _opened(self.files[name]) as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


class Shards:
    """Writes tensors into a folder as they come, a file for each so many bytes.

    Args:
        stem: the files' name: `model.safetensors`, or `model-00001.safetensors` ... with an index where there are several.
    """

    def __init__(
        self, folder: Path, stem: str = "model", limit: int = SHARD, metadata: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.stem, self.limit = folder, stem, limit
        self.metadata = dict(metadata or {"format": "pt"})
        self.held: dict[str, Tensor] = {}
        self.written: dict[str, str] = {}
        self.bytes = self.files = self.total = 0

    def add(self, name: str, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self.held and self.bytes + size > self.limit:
            self._write()
        self.held[name] = tensor.detach().cpu().contiguous()
        self.bytes += size
        self.total += size

    def close(self) -> None:
        self._write()
        if self.files == 1:
            only = self.folder / f"{self.stem}-00001.safetensors"
            only.rename(self.folder / f"{self.stem}.safetensors")
        else:
            index = {"metadata": {"total_size": self.total}, "weight_map": self.written}
            (self.folder / f"{self.stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))

    def _write(self) -> None:
        if not self.held:
            return
        self.files += 1
        file = f"{self.stem}-{self.files:05d}.safetensors"
        save_file(self.held, self.folder / file, self.metadata)
        self.written |= dict.fromkeys(self.held, file)
        self.held, self.bytes = {}, 0


@dataclass(frozen=True)
class Match:
    """Which tensors of two models are the same ones.

    Attributes:
        pairs: ours -> theirs, of one shape.
        ours, theirs: names that only one of them has.
        shapes: of matching names, (name, our shape, their shape), where these differ.
    """

    pairs: dict[str, str]
    ours: list[str] = field(default_factory=list)
    theirs: list[str] = field(default_factory=list)
    shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return not (self.ours or self.theirs or self.shapes)

    def problems(self) -> list[str]:
        """What does not match, a line each."""
        found = [f"{name} is {list(a)} in one and {list(b)} in the other" for name, a, b in self.shapes[:SHOWN]]
        for names, where in ((self.ours, "first"), (self.theirs, "second")):
            if names:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                found.append(f"only the {where} has {', '.join(names[:SHOWN])}{more}")
        if any("qkv" in n or "gate_up" in n or "c_attn" in n for n in (*self.ours, *self.theirs)):
            found.append("one of them has fused projections: convert it first")
        return found

    def check(self, first: str, second: str) -> dict[str, str]:
        """The pairs.

        Raises:
            WhetError: something does not match.
        """
        if not self.pairs:
            raise WhetError(f"nothing in '{first}' matches '{second}': {'; '.join(self.problems())}")
        if not self.whole:
            raise WhetError(f"'{first}' and '{second}' are not models of one kind: {'; '.join(self.problems())}")
        return self.pairs


def match(ours: Shapes, theirs: Shapes) -> Match:
    """Match the names of two models: wrappers of PEFT, compile and data parallel are looked through, and one prefix may stand
    for another (a task's class, a vision-language model: `model.` and `model.language_model.`).
    """
    a, b = ({canonical(n): n for n in names} for names in (ours, theirs))
    renamed = _renaming(a, b)
    common = {n: renamed(n) for n in a if renamed(n) in b}
    wrong = [
        (a[n], tuple(ours[a[n]]), tuple(theirs[b[m]]))
        for n, m in common.items()
        if tuple(ours[a[n]]) != tuple(theirs[b[m]])
    ]
    bad = {name for name, *_ in wrong}
    pairs = {a[n]: b[m] for n, m in common.items() if a[n] not in bad}
    taken = set(common.values())
    return Match(pairs, [a[n] for n in a if n not in common], [b[m] for m in b if m not in taken], wrong)


def canonical(name: str) -> str:
    """A parameter's name without what wrappers have put around it."""
    while any(name.startswith(w) for w in WRAPPERS):
        name = next(name.removeprefix(w) for w in WRAPPERS if name.startswith(w))
    return name.replace(".base_layer.", ".").replace("._orig_mod.", ".").replace(".modules_to_save.default.", ".")


def _renaming(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Any:
    """Names as they are, or with the prefix exchanged that makes most of them match: half of them at least, as a few match by
    accident in any two models."""
    best = (sum(n in theirs for n in ours), "", "")
    for strip in _prefixes(ours):
        for put in _prefixes(theirs):
            found = sum(n.startswith(strip) and put + n[len(strip) :] in theirs for n in ours)
            if 2 * found >= min(len(ours), len(theirs)):
                best = max(best, (found, strip, put), key=lambda item: item[0])
    _, strip, put = best
    return lambda name: (
        put + name[len(strip) :] if name.startswith(strip) and put + name[len(strip) :] in theirs else name
    )


def _prefixes(names: Mapping[str, Any]) -> list[str]:
    """The first parts of the names, up to two: "", "model.", "model.language_model." ..."""
    found = {""}
    for name in names:
        parts = [part + "." for part in name.split(".")[:-1]][:2]
        found |= {p for p in accumulate(parts) if not any(c.isdigit() for c in p)}
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def same_tokens(first: Path, second: Path) -> bool | None:
    """Whether two folders' tokenizers give the same ids to the same tokens; None where one has none to compare."""
    known = []
    for folder in (first, second):
        file = folder / "tokenizer.json"
        if not file.is_file():
            return None
        read = trust.read_json(file)
        vocabulary = read["model"].get("vocab", {})
        added: Sequence[Any] = [(t["id"], t["content"]) for t in read.get("added_tokens", [])]
        known.append((vocabulary, added))
    return known[0] == known[1]


def _folder(source: str | Path) -> Path:
    """Where the files are."""
    if Path(source).is_file():
        return Path(source)
    place = Path(resolve(source))
    if place.is_dir():
        return place
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise WhetError(f"'{source}': no such folder or file, and not a Hub name of the form ORG/NAME")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"]))
    except (OSError, ValueError) as problem:
        raise WhetError(f"'{source}' could not be fetched: {str(problem).strip().splitlines()[0]}") from problem


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as problem:
        raise WhetError(f"'{path}' cannot be read: {problem}") from problem
