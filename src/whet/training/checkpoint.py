"""Checkpoints: atomic folders of safetensors and plain data.

A checkpoint is written beside its place and renamed into it, so that a folder with its name is whole; what a crash left
half-written or half-removed has another name and is swept away. The last file of a checkpoint, its manifest, holds a digest of
each of the others, so that one that a disk has spoilt since is known and the one before it is taken. Loading takes tensors and
plain values only, never pickled objects. What is cut among ranks goes through `torch.distributed.checkpoint`: each rank writes its
part, into a folder that all of them must see, and any number of ranks reads the whole.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed import checkpoint as distributed
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from whet.errors import WhetError
from whet.ranks import Ranks

log = logging.getLogger("whet")

PREFIX = "step-"
RETIRED = ".retired-"
TORN = ".torn-"
MANIFEST = "manifest.json"
CUTS = "cuts"  # the folder of what is cut among ranks
CUT = "whet/cut"
ALONE = Ranks()


def save(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = 2,
    ranks: Ranks = ALONE,
) -> Path:  # fmt: skip
    """Write checkpoint `step` below `folder` and drop all but the newest `keep`.

    The first rank writes. Tensors of the state that are cut among ranks are written by all of them, each its own part, and all must
    call it then; `load` gives the whole ones, to any number of ranks.

    Args:
        tensors: weights by name.
        state: nested dicts and lists of tensors and plain values.
        ranks: who calls it.
    """
    final = folder / f"{PREFIX}{step:08d}"
    draft = folder / f".draft-{step:08d}-{os.getpid()}"
    cuts: dict[str, Tensor] = {}
    state = _without_cuts(dict(state), cuts)
    if ranks.first:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
    try:
        if cuts:
            _save_cuts(ranks.broadcast(draft) / CUTS, cuts)
        if not ranks.first:
            return final
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft / "weights.safetensors")
        with (draft / "state.pt").open("wb") as file:  # which says what is wrong where torch does not
            torch.save(dict(state), file)
        seal(draft)
    except Exception:
        shutil.rmtree(draft, ignore_errors=True)  # on a full disk it would be in the way
        raise
    if final.exists():
        final.rename(folder / f"{RETIRED}{final.name}")  # `found` puts it back if the next line is never reached
    draft.rename(final)
    _sync(folder)
    for old in found(folder)[:-keep]:
        old.rename(folder / f"{RETIRED}{old.name}")
        shutil.rmtree(folder / f"{RETIRED}{old.name}")
    for torn in folder.glob(f"{TORN}*"):
        shutil.rmtree(torn)
    return final


def _without_cuts(value: Any, cuts: dict[str, Tensor], at: str = "") -> Any:
    """A nested state in which a name stands for each cut tensor, which goes into `cuts`."""
    if isinstance(value, DTensor):
        cuts[at] = value
        return {CUT: at}
    if isinstance(value, Mapping):
        return {k: _without_cuts(v, cuts, f"{at}/{k}") for k, v in value.items()}
    return [_without_cuts(v, cuts, f"{at}/{i}") for i, v in enumerate(value)] if isinstance(value, list) else value


def _with_cuts(value: Any, wholes: Mapping[str, Tensor]) -> Any:
    if isinstance(value, Mapping):
        return wholes[value[CUT]] if CUT in value else {k: _with_cuts(v, wholes) for k, v in value.items()}
    return [_with_cuts(v, wholes) for v in value] if isinstance(value, list) else value


def _save_cuts(folder: Path, cuts: Mapping[str, Tensor]) -> None:
    """Each rank its part, as safetensors: torch's own format has a pickled index."""
    distributed.save(dict(cuts), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def _load_cuts(folder: Path) -> dict[str, Tensor]:
    """The whole tensors, on the CPU. No other rank is asked for anything."""
    reader = HuggingFaceStorageReader(str(folder))
    kinds: dict[str, Any] = reader.read_metadata().state_dict_metadata
    wholes: dict[str, Any] = {name: torch.empty(kind.size, dtype=kind.properties.dtype) for name, kind in kinds.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as meant
        distributed.load(wholes, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return wholes


def seal(draft: Path) -> None:
    """Write the manifest of a folder's files, and have all of them on the disk."""
    for file in _files(draft):
        _sync(draft / file)
    (draft / MANIFEST).write_text(json.dumps({file: _digest(draft / file) for file in _files(draft)}, indent=1))
    _sync(draft / MANIFEST)


def fault(checkpoint: Path) -> str:
    """What is wrong with the files of a checkpoint, by its manifest; "" where they are as they were saved, or where there is none: a
    folder gets its name once it is whole, and older versions wrote no manifest. A disk that cannot be read is an error, not a fault."""
    if not (checkpoint / MANIFEST).exists():
        return ""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        now = {file: _digest(checkpoint / file) for file in _files(checkpoint)}
    except FileNotFoundError as problem:
        return f"{problem}"
    except OSError as problem:
        raise WhetError(f"checkpoint '{checkpoint}' cannot be read now ({problem}): nothing was set aside; see to the disk and go on by the "
                        "same command") from problem  # fmt: skip
    except (ValueError, RecursionError) as problem:
        return f"{MANIFEST}: {problem}"
    if not isinstance(manifest, dict):
        return f"{MANIFEST} holds a {type(manifest).__name__}"
    return next(
        (f"{file} is not what was saved" for file in sorted({*manifest, *now}) if manifest.get(file) != now.get(file)),
        "",
    )


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is as it was saved. A torn one is said and set aside, and is gone with the next save."""
    for checkpoint in reversed(found(folder)):
        if not (why := fault(checkpoint)):
            return checkpoint
        log.warning("checkpoint '%s' is torn (%s): it is left out, and the one before is taken", checkpoint, why)
        aside = folder / f"{TORN}{checkpoint.name}"
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
    if any(folder.glob(f"{TORN}*")):
        log.warning("no checkpoint in '%s' is whole: the run begins anew", folder)
    return None


def found(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first; what a crashed process left behind is removed."""
    if not folder.exists():
        return []
    newest = max((p.name for p in folder.glob(f"{PREFIX}*")), default="")
    for retired in folder.glob(f"{RETIRED}*"):
        name = retired.name.removeprefix(RETIRED)
        if name > newest:  # it was to be replaced and was not
            retired.rename(folder / name)
        else:
            shutil.rmtree(retired)
    for draft in folder.glob(".draft-*"):
        shutil.rmtree(draft)
    return sorted(p for p in folder.glob(f"{PREFIX}*") if p.is_dir())


def load(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the state of a checkpoint, as they were saved."""
    try:
        if why := fault(checkpoint):
            raise ValueError(why)
        weights = load_file(checkpoint / "weights.safetensors")
        state = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"state.pt holds a {type(state).__name__}")
        if (checkpoint / CUTS).exists():
            state = _with_cuts(state, _load_cuts(checkpoint / CUTS))
    except Exception as problem:
        first = str(problem).partition("\n")[0].partition(". ")[0]  # torch goes on with advice to trust the file
        raise WhetError(f"checkpoint '{checkpoint}' cannot be read ({first}); remove it to go on from the one "
                        "before") from problem  # fmt: skip
    return weights, state


def write_atomic(path: Path, text: str) -> None:
    """Write a small text file so that a reader never sees half of it. Drafts that killed processes left go away."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if left.suffix[1:].isdecimal() and not _alive(int(left.suffix[1:])):
            left.unlink(missing_ok=True)
    draft.write_text(text)
    _sync(draft)
    draft.replace(path)


def _files(folder: Path) -> list[str]:
    """All files below a folder but the manifest."""
    names = (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in names if name != MANIFEST)


def _digest(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
