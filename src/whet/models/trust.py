"""What a model folder may bring along: tensors and settings. Code, and pickled weights, which can be code, are refused unless they
are asked for by name.

| in the folder | without a flag | with it |
|---|---|---|
| weights in safetensors | read | |
| pickled weights alone (`.bin`, `.pt`) | refused | `allow_pickle`: read as tensors only, never as objects |
| `auto_map` (code of its own), of a type that Transformers knows | Transformers' own code is used | `trust_remote_code`: its own |
| `auto_map`, of another type; a kernel of the Hub as `attn_implementation` | refused | `trust_remote_code`: it runs |
| an index whose shards lie elsewhere | refused | refused |

A name of the Hub goes to Transformers with the same two answers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any

from whet.errors import WhetError, first_line, shown

log = logging.getLogger("whet")

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json")


def check(folder: str | Path, *, allow_pickle: bool = False, trust_remote_code: bool = False) -> None:
    """Refuse a model or adapter folder that brings more than it may. A name of the Hub, which is no folder, passes.

    Raises:
        WhetError: what it brings, and what to do about it.
    """
    place = Path(folder)
    if not place.is_dir():
        return
    for index in place.glob("*.index.json"):
        shards(index)
    stem = "adapter_model" if (place / "adapter_config.json").exists() else "model"
    safe = any((place / f"{stem}.safetensors{end}").exists() for end in ("", ".index.json"))
    if not safe and not allow_pickle and (found := pickled(place)):
        raise WhetError(refusal(place, found))
    if not trust_remote_code:
        for name in CONFIGS:
            _check_code(place, name)


def refusal(place: str | Path, found: Iterable[str]) -> str:
    """What is said of pickled weights."""
    return (f"'{place}' holds no weights in safetensors but pickled ones ({', '.join(found)}), which can run code as they are "
            "read: save them as safetensors, by whet.load(FOLDER, allow_pickle=True).save(OTHER), or give --allow-pickle "
            "where a model is loaded")  # fmt: skip


def pickled(folder: Path) -> list[str]:
    """The files that look like pickled weights, some of them."""
    return sorted({p.name for pattern in PICKLED for p in folder.glob(pattern) if p.name != "training_args.bin"})[:3]


def shards(index: Path) -> list[Path]:
    """The files of an index of shards, each beside it.

    Raises:
        WhetError: it is no index, or names a file elsewhere.
    """
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise WhetError(f"'{index}' is no index of shards: it has no weight_map of file names; save the model again")
    for name in set(names.values()):
        if not inside(name):
            raise WhetError(
                f"'{index}' names the shard '{shown(name, 100)}', which is no file beside it; fetch or save the model again"
            )
    return [index.parent / name for name in sorted(set(names.values()))]


def inside(name: str) -> bool:
    """Whether a name is that of a file in a folder, and no way out of it, on any system."""
    return bool(name) and name not in (".", "..") and "\0" not in name and PureWindowsPath(name).name == name


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file of a model folder. Raises WhetError where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise WhetError(
            f"'{file}' cannot be read as JSON ({first_line(problem)}); fetch or save the model again"
        ) from None
    if not isinstance(found, dict):
        raise WhetError(f"'{file}' holds no object; fetch or save the model again")
    return found


def adapter_base(config: Path) -> str:
    """The base that an adapter folder names. Raises WhetError where it names none."""
    base = read_json(config).get("base_model_name_or_path")
    if not isinstance(base, str) or not base or "\0" in base or "://" in base:
        raise WhetError(
            f"'{config}' names no base: 'base_model_name_or_path' is a folder or a Hub name, not {shown(repr(base), 100)}"
        )
    return base


def _check_code(place: Path, name: str) -> None:
    file = place / name
    if not file.exists():
        return
    found = read_json(file)
    flag = "look at its .py files, and give --trust-remote-code if you trust whoever wrote them"
    for key in ("attn_implementation", "_attn_implementation"):
        asked = found.get(key)
        kernels = asked.values() if isinstance(asked, dict) else [asked]
        if any(isinstance(kernel, str) and "/" in kernel for kernel in kernels):
            raise WhetError(f"'{file}' asks for a kernel of the Hub ({key}: {shown(str(asked), 100)}), which is code: remove the line, or "
                            "give --trust-remote-code")  # fmt: skip
    if not found.get("auto_map"):
        return
    if name == "config.json":
        from transformers import CONFIG_MAPPING

        if found.get("model_type") not in CONFIG_MAPPING:
            raise WhetError(f"'{place}' is a model with code of its own ({name} has an auto_map, and Transformers knows no "
                            f"'{shown(str(found.get('model_type')), 60)}'), which does not run unasked: {flag}")  # fmt: skip
        log.info("'%s' brings code of its own, which is left out: Transformers knows its type", place)
