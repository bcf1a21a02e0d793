"""What training will ask of the memory: an estimate from the shapes, which says where the bytes go."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

from whet.config import RunConfig
from whet.models.base import pick_device
from whet.models.format import Format
from whet.models.hooks import blocks_of
from whet.models.meter import Shapes
from whet.models.packing import token_budget
from whet.objectives.forward import chunk_tokens
from whet.ranks import BUCKET
from whet.sampling.native import NativeSampler
from whet.tasks import Task
from whet.terminal.console import amount, memory, table
from whet.training.stage import Stage
from whet.weights import Weights, get_weights
from whet.weights.weights import linear

BYTES = {"float32": 4, "mixed": 4, "float64": 8, "bfloat16": 2}
MOST_CACHE = 4 << 30  # of the native sampler on a CPU; on a GPU it takes a third of what is free


LEARN, REST = "learning", "sampling and evaluation"
NF4 = 0.516  # bytes of an entry of a 4-bit layer, its doubly quantized scales among them
EIGHT = 1 + 4 / 256  # of a moment of 8 bits, with a scale for each 256


@dataclass(frozen=True)
class Item:
    """One thing that takes memory on a rank.

    Attributes:
        when: the phases in which it is there; they follow one another.
    """

    what: str
    size: float
    how: str
    when: tuple[str, ...] = (LEARN, REST)


def moving(stages: Sequence[Stage], config: RunConfig) -> list[Weights]:
    """What moves in a run, one after another: what its stages say themselves, else what the run says."""
    asked = get_weights(config.weights)
    return list({id(w): w for w in (stage.weights or asked for stage in stages)}.values())


def estimate(
    model: nn.Module, stages: Sequence[Stage], task: Task, config: RunConfig, form: Format, ranks: int = 1
) -> list[Item]:
    """What the largest stage of a run takes on each rank, about.

    Args:
        model: its parameters may lie on the meta device; only shapes are read.
        form: renders the prompts whose length the sampler's cache depends on.
        ranks: processes that share the work, a GPU each.
    """
    size = BYTES[config.dtype]
    low = 2 if config.dtype == "mixed" else size  # of activations
    shape: Any = getattr(model, "config", None)
    parameters = sum(p.numel() for p in model.parameters())
    own = moving(stages, config)
    cost = max((weights.cost(model) for weights in own), key=lambda c: c.optimizer(size))
    n = ranks if config.shard else 1
    each = f", cut among {n} ranks" if n > 1 else ""
    held, how = parameters * size, f"{amount(parameters)} parameters x {size} bytes"
    if config.quantize != "none":
        low_bit = _linear(model)
        held = low_bit * NF4 + (parameters - low_bit) * size
        how = f"{amount(low_bit)} in 4 bits, {amount(parameters - low_bit)} x {size} bytes"
    moments = f"two moments of AdamW for each of {amount(cost.moving)} entries"
    held_moments = float(cost.optimizer(size))
    if config.optimizer == "adamw8bit":
        held_moments, moments = 2 * EIGHT * cost.moving, moments + ", of 8 bits"
    items = [Item("weights", held, how, (REST,) if n > 1 else (LEARN, REST))]
    if n > 1:
        items += _gathered(model, parameters, cost.gradients, size, n)
    items += [
        Item("gradients", cost.gradients * size / n, f"{amount(cost.gradients)} parameters have one{each}"),
        Item("optimizer", held_moments / n, moments + (", and their places" if cost.places else "") + each),
    ]
    if ranks > 1 and n == 1:
        items.append(Item("sum of gradients", 4 * min(BUCKET, cost.gradients), "a bucket at a time", (LEARN,)))
    wants = frozenset().union(*(s.wants() for s in stages))
    if wants & {"reference", "reference_logprob"} and not all(weights.injects for weights in own):
        items.append(Item("reference", parameters * size, "a frozen copy" + (", whole on each rank" if n > 1 else "")))
    tokens = token_budget(config.token_budget, pick_device(config.device).type)
    per_token, how = activations(shape, config.activation_checkpointing)
    items.append(
        Item("activations", tokens * per_token * low, f"{tokens} tokens x {amount(per_token)} values, {how}", (LEARN,))
    )
    vocabulary = int(shape.vocab_size)
    full = 4 * tokens * vocabulary
    rows = chunk_tokens(vocabulary)
    chunk = 3 * 4 * min(tokens, rows) * vocabulary
    how = (f"B·L·V = {tokens} x {vocabulary} would be {memory(full)} in fp32, three times with softmax and gradient; "
           f"in chunks of {rows} learnt tokens")  # fmt: skip
    items.append(Item("logits", chunk, how, (LEARN,)))
    items.append(_cache(model, stages, task, form, size))
    return items


def peak(items: Sequence[Item]) -> tuple[float, str]:
    """The most that a rank holds at once, and in which phase."""
    return max((sum(i.size for i in items if phase in i.when), phase) for phase in (LEARN, REST))


def _gathered(model: nn.Module, parameters: int, gradients: int, size: int, n: int) -> list[Item]:
    """What a rank holds of parameters that are cut: its own, and while it learns what is gathered of those of others."""
    block = max(sum(p.numel() for p in b.parameters()) for b in blocks_of(model))
    rest = parameters - sum(p.numel() for b in blocks_of(model) for p in b.parameters())
    whole = 2 * block + rest  # one block is used while the next one comes
    return [
        Item("own parameters", parameters * size / n, f"{amount(parameters)} parameters x {size} bytes, cut among {n} ranks"),
        Item("gathered", whole * size, f"two blocks of {amount(block)}, and {amount(rest)} of embeddings and head", (LEARN,)),
        Item("whole gradients", (block + rest) * size * gradients / parameters,
             "of a block, and of embeddings and head, before they are cut", (LEARN,)),
    ]  # fmt: skip


def _linear(model: nn.Module) -> int:
    """Entries of the linear layers that are held in 4 bits: all but the head."""
    found: Any = model
    head = found.get_output_embeddings()
    weights: list[Any] = [m.weight for m in model.modules() if linear(m) and m is not head]
    return sum(w.numel() for w in weights)


def activations(shape: Any, checkpointing: bool) -> tuple[float, str]:
    """Values kept for the backward of one token, and how they are counted."""
    hidden, layers = shape.hidden_size, shape.num_hidden_layers
    heads = shape.num_attention_heads
    width = getattr(shape, "head_dim", None) or hidden // heads
    kv = getattr(shape, "num_key_value_heads", None) or heads
    inner = getattr(shape, "intermediate_size", None) or getattr(shape, "n_inner", None) or 4 * hidden
    layer = 6 * hidden + 4 * (heads + kv) * width + 4 * inner
    if checkpointing:
        return layers * hidden + layer, f"one state for each of {layers} layers, one layer recomputed at a time"
    return layers * layer, f"{layers} layers"


def memory_table(items: Sequence[Item]) -> Table:
    """The items of a rank with the most that is there at once, and what the machine has."""
    made = table("memory", "about", "how", right=("about",))
    for item in items:
        made.add_row(item.what, memory(item.size), f"[dim]{item.how}[/]")
    made.add_section()
    most, phase = peak(items)
    made.add_row("together", f"[bold]{memory(most)}[/]", f"[dim]at once, in {phase}; {available()}[/]")
    return made


def available() -> str:
    """What the machine has."""
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = [f"this machine has {memory(ram)}"]
    for i in range(torch.cuda.device_count()):
        free, all_of_it = torch.cuda.mem_get_info(i)
        found.append(f"cuda:{i} {memory(free)} free of {memory(all_of_it)}")
    return ", ".join(found)


def _cache(model: nn.Module, stages: Sequence[Stage], task: Task, form: Format, size: int) -> Item:
    """Keys and values of the answers that are decoded together; evaluations fill the sampler's batch in every run."""
    for stage in stages:
        stage.collect.bind(task)
    budget = max(task.max_answer_tokens(), *(s.collect.budget for s in stages))
    length = budget + max(sum(len(s.ids) for s in form.prompt(p)) for p in task.problems("train", 32))
    shape: Any = model.config
    heads = shape.num_attention_heads
    share = (getattr(shape, "num_key_value_heads", None) or heads) / heads
    token = 2 * Shapes.of(model).attention * share * size
    answers = NativeSampler().batch_size
    how = f"{answers} answers x {length} tokens x {memory(token)}, at most {memory(MOST_CACHE)}"
    return Item("sampler's cache", min(MOST_CACHE, answers * length * token), how, (REST,))
