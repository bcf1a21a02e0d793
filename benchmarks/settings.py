"""What each side may be set to in each cell. A `--sweep` tries all of it and writes the best of each to settings.json.

Everything here is one line a choice, so that what was tried can be read. Batch sizes that change what is learnt are not
choices: an optimizer step is 32 demonstrations, 16 pairs, or 8 groups of 8 answers on both sides. TRL's
`gradient_checkpointing` (on by default) is off everywhere, since it only costs time; memory is measured with TRL's
defaults. `precompute_ref_log_probs` is no choice: each pair is seen once, so it would only move the cost out of sight.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHOSEN = Path(__file__).with_name("settings.json")

Grid = Mapping[str, Sequence[Any]]

WHET: dict[str, Grid] = {
    "sft": {"dtype": ["float32", "mixed"], "token_budget": [1024, 4096]},
    "dpo": {"dtype": ["float32", "mixed"], "token_budget": [1024, 4096]},
    "grpo_short": {"dtype": ["float32", "mixed"], "token_budget": [1024, 4096]},
    "grpo_long": {"dtype": ["float32", "mixed"], "token_budget": [1024, 4096]},
    "sampling_ragged": {"dtype": ["float32", "mixed"], "batch_size": [512, 64]},
}

# micro: sequences a forward; the rest of an optimizer step is accumulated
TRL: dict[str, Grid] = {
    "sft": {
        "bf16": [False, True],
        "micro": [32, 8],
        "packing": [False, True],
        "sampler": ["random", "group_by_length"],
        "workers": [0, 1],
    },
    "dpo": {"bf16": [False, True], "micro": [16, 4], "padding_free": [False, True]},
    "grpo_short": {"bf16": [False, True], "micro": [64, 16], "continuous": [False, True]},
    "grpo_long": {"bf16": [False, True], "micro": [64, 16], "continuous": [False, True]},
    "sampling_ragged": {"dtype": ["float32", "mixed", "bfloat16"], "engine": ["generate", "generate_batch"], "batch_size": [128, 32]},
}  # fmt: skip


def candidates(side: str, cell: str) -> list[dict[str, Any]]:
    """Every combination; the first one is what is used where nothing was swept."""
    grid = (WHET if side == "whet" else TRL)[cell]
    found = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    # padding-free packing has no padding that sorting by length could save
    return [c for c in found if not (c.get("packing") and c.get("sampler") == "group_by_length")]


def chosen(side: str, cell: str, file: Path = CHOSEN) -> dict[str, Any]:
    """The best settings of the last sweep."""
    swept = json.loads(file.read_text()) if file.exists() else {}
    return swept.get(cell, {}).get(side, {}).get("settings") or candidates(side, cell)[0]
