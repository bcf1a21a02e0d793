"""What Whet would take on GPUs that it has not been run on: memory by `whet doctor`'s estimate, step time by arithmetic.

    python -m benchmarks.predicted            # the table of docs/scale.md

Nothing here is measured. Shapes are those of Qwen 2.5 models; weights are never made. A step is GRPO's: 16 prompts of 200
tokens, 8 answers of 500 tokens each. Its time is operations over `SHARE` of a card's bf16 rate, and decoding is the
reading of the weights, once a token of the longest answer, at `SHARE` of a card's memory bandwidth, each rank for its own answers.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from whet.config import RunConfig
from whet.models import base
from whet.models.format import Format
from whet.models.meter import Shapes
from whet.recipes.recipe import get_recipe
from whet.tasks import get_task
from whet.terminal.memory import estimate, peak

SHAPES: dict[str, dict[str, int]] = {
    "0.5 B": {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
              "intermediate_size": 4864, "vocab_size": 151_936},
    "7 B": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
            "intermediate_size": 18_944, "vocab_size": 152_064},
    "70 B": {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
             "intermediate_size": 29_568, "vocab_size": 152_064},
}  # fmt: skip
RATE, BANDWIDTH, SHARE = (
    989e12,
    3.35e12,
    0.4,
)  # of an H100 SXM, dense bf16, by its data sheet; what is assumed to be reached
PROMPTS, PROMPT, ANSWERS, ANSWER = 16, 200, 8, 500


@dataclass(frozen=True)
class Plan:
    """A model on some GPUs."""

    model: str
    ranks: int
    options: tuple[tuple[str, Any], ...] = ()

    def config(self) -> RunConfig:
        common = {"recipe": "grpo", "dtype": "bfloat16", "token_budget": 8192, "activation_checkpointing": True}
        return RunConfig(**{**common, **dict(self.options)})


PLANS = (
    Plan("0.5 B", 1, (("dtype", "mixed"),)),
    Plan("7 B", 1, (("weights", "lora"),)),
    Plan("7 B", 1, (("weights", "lora"), ("quantize", "nf4"))),
    Plan("7 B", 8, (("shard", True), ("dtype", "mixed"))),
    Plan("70 B", 16, (("shard", True), ("weights", "lora"))),
    Plan("70 B", 64, (("shard", True), ("dtype", "mixed"))),
)


def skeleton(name: str) -> Any:
    """A model of these shapes on no device."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    with torch.device("meta"):
        return Qwen2ForCausalLM(Qwen2Config(**SHAPES[name], tie_word_embeddings=name == "0.5 B"))


def memory(plan: Plan) -> tuple[float, str]:
    """Bytes of a rank at its peak, and when that is."""
    config, form = plan.config(), Format(base.load("micro").tokenizer)
    stages = get_recipe("grpo")().stages
    return peak(estimate(skeleton(plan.model), stages, get_task("chain-sum"), config, form, plan.ranks))


def seconds(plan: Plan) -> tuple[float, float]:
    """Of sampling and of learning in a step: arithmetic, see above."""
    shapes = Shapes.of(skeleton(plan.model))
    weights = shapes.body + shapes.head
    tokens = PROMPTS * (PROMPT + ANSWERS * ANSWER)
    learning = 8 * weights * tokens / plan.ranks / (RATE * SHARE)  # forward, backward, and the forward of checkpointing
    reading = ANSWER * 2 * weights / (BANDWIDTH * SHARE)
    computing = 2 * weights * tokens / plan.ranks / (RATE * SHARE)
    return max(reading, computing), learning


def table() -> str:
    rows = ["| model | GPUs | options | GiB a GPU | sampling, s | learning, s |", "|---|---|---|---|---|---|"]
    for plan in PLANS:
        most, phase = memory(plan)
        sampling, learning = seconds(plan)
        options = " ".join(f"--{k.replace('_', '-')}" + ("" if v is True else f" {v}") for k, v in plan.options)
        dtype = "" if "dtype" in dict(plan.options) else "--dtype bfloat16 "
        rows.append(
            f"| {plan.model} | {plan.ranks} | `{dtype}{options}` | {most / 2**30:.0f} ({phase}) | {sampling:.1f} | {learning:.1f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    logging.disable()
    print(table())
