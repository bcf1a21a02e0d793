"""Checkpoints: atomic folders of safetensors and plain data.

A checkpoint is written beside its place and renamed into it, so that a folder with its name is whole; what a crash left
half-written or half-removed has another name and is swept away. Loading takes tensors and plain values only, never pickled objects.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from whet.errors import WhetError

PREFIX = "step-"
RETIRED = ".retired-"


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = 2) -> Path:
    """Write checkpoint `step` below `folder` and drop all but the newest `keep`.

    Args:
        tensors: weights by name.
        state: nested dicts and lists of tensors and plain values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{PREFIX}{step:08d}"
    draft = folder / f".draft-{step:08d}-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft / "weights.safetensors")
    torch.save(dict(state), draft / "state.pt")
    for file in draft.iterdir():
        _sync(file)
    if final.exists():
        final.rename(folder / f"{RETIRED}{final.name}")  # `found` puts it back if the next line is never reached
    draft.rename(final)
    _sync(folder)
    for old in found(folder)[:-keep]:
        old.rename(folder / f"{RETIRED}{old.name}")
        shutil.rmtree(folder / f"{RETIRED}{old.name}")
    return final


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
    """The weights and the state of a checkpoint."""
    try:
        weights = load_file(checkpoint / "weights.safetensors")
        state = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"state.pt holds a {type(state).__name__}")
    except Exception as problem:
        first = str(problem).partition("\n")[0].partition(". ")[0]  # torch goes on with advice to trust the file
        raise WhetError(f"checkpoint '{checkpoint}' cannot be read ({first}); remove it to go on from the one "
                        "before") from problem  # fmt: skip
    return weights, state


def write_atomic(path: Path, text: str) -> None:
    """Write a small text file so that a reader never sees half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    _sync(draft)
    draft.replace(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
