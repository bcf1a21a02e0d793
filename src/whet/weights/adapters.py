"""PEFT adapter folders as low-rank deltas, and low-rank deltas as PEFT adapter folders.

    W + s B A,   s = alpha / r  (alpha / sqrt(r) for rsLoRA)

Only plain LoRA is additive. DoRA rescales columns, and adapters that were initialised from the base's own weights (PiSSA, CorDA,
OLoRA) belong to a base that was changed: they are refused.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from whet.errors import WhetError
from whet.models import trust
from whet.weights.delta import Absolute, LowRank, Part, WeightDelta
from whet.weights.files import Stored, canonical

CHANGE_THE_BASE = ("pissa", "corda", "olora", "loftq")
FILE = "adapter_model.safetensors"


def read_adapter(folder: str | Path) -> WeightDelta:
    """The difference that a folder of LoRA adapters makes, by the names of the base's weights.

    Raises:
        WhetError: the adapters are not additive, or of another kind.
    """
    config = trust.read_json(Path(folder) / "adapter_config.json")
    trust.check(folder)
    _check(config, folder)
    stored = Stored(Path(folder) / FILE)
    flipped = bool(config.get("fan_in_fan_out"))
    parts: dict[str, tuple[str, str, float]] = {}
    absolute: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for key in stored:
        name = canonical(key)
        if (found := re.fullmatch(r"(.+)[.]lora_A[.]weight", name)) is not None:
            module, other = found[1], key.replace(".lora_A.", ".lora_B.")
            parts[f"{module}.weight"] = (key, other, _scale(config, module))
            out, into = stored.shapes[other][0], stored.shapes[key][1]
            shapes[f"{module}.weight"] = (into, out) if flipped else (out, into)
        elif ".lora_" not in name:  # a module that was saved whole
            absolute[name], shapes[name] = key, stored.shapes[key]
        elif not name.endswith(".lora_B.weight"):
            raise WhetError(f"adapters in '{folder}' hold '{key}', which is not plain LoRA on a linear layer")

    def read(name: str) -> Part:
        if name in absolute:
            return Absolute(stored[absolute[name]])
        down, up, scale = parts[name]
        a, b = stored[down].float(), scale * stored[up].float()
        return LowRank(a.T, b.T) if flipped else LowRank(b, a)

    return WeightDelta(shapes, read)


def write_adapter(delta: WeightDelta, folder: str | Path, base: str, *, fan_in_fan_out: bool = False) -> None:
    """Write a low-rank delta as a folder that plain PEFT loads onto `base`.

    Args:
        fan_in_fan_out: whether the base's weights are (in, out), as GPT-2's are.
    """
    from peft import LoraConfig

    tensors, ranks = {}, {}
    for name in delta:
        part = delta[name]
        if not isinstance(part, LowRank):
            raise WhetError(f"'{name}' is no low-rank difference: take `low_rank(rank)` of the delta first")
        module = name.removesuffix(".weight")
        b, a = (part.down.T, part.up.T) if fan_in_fan_out else (part.up, part.down)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.contiguous()
        ranks[module] = len(a)
    rank = max(ranks.values())
    others = {module: r for module, r in ranks.items() if r != rank}
    config = LoraConfig(r=rank, lora_alpha=rank, rank_pattern=others, alpha_pattern=others, target_modules=sorted(ranks),
                        fan_in_fan_out=fan_in_fan_out, task_type="CAUSAL_LM", inference_mode=True)  # fmt: skip
    config.base_model_name_or_path = base
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(place))
    save_file(tensors, place / FILE, {"format": "pt"})


def _check(config: dict[str, Any], folder: str | Path) -> None:
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        raise WhetError(f"adapters in '{folder}' are {kind}, which is no difference of weights; only LoRA is")
    if config.get("use_dora"):
        raise WhetError(f"adapters in '{folder}' are DoRA, which rescales the base's columns and cannot be added: merge them into "
                        "their own base (train on with --weights full)")  # fmt: skip
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(CHANGE_THE_BASE):
        raise WhetError(f"adapters in '{folder}' began as {start}, which changes the base's own weights: they cannot be added to the "
                        "original base; save them converted to plain LoRA")  # fmt: skip
    if config.get("bias", "none") != "none":
        raise WhetError(f"adapters in '{folder}' train biases too (bias={config['bias']}), which are not read here")


def _scale(config: dict[str, Any], module: str) -> float:
    rank, alpha = (
        _patterned(config, key, pattern, module)
        for key, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern"))
    )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _patterned(config: dict[str, Any], key: str, pattern: str, module: str) -> float:
    """A module's own value, found as PEFT finds it: by the end of its name."""
    for name, value in (config.get(pattern) or {}).items():
        if re.match(rf"(.*\.)?({name.removeprefix('^')})$", module):
            return float(value)
    return float(config[key])
