"""A few steps of a model of 30 M parameters on each rank: what `whet doctor` predicts and what it takes; started by `test_losses.py`."""

from __future__ import annotations

import gc
import resource
import sys
from pathlib import Path

import torch

from tiny import tiny_policy
from whet.config import RunConfig
from whet.ranks import Ranks
from whet.recipes.recipe import get_recipe
from whet.tasks import get_task
from whet.terminal.memory import estimate, peak
from whet.training.fit import Fit, Options

SHAPE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 9, "num_attention_heads": 8, "num_key_value_heads": 8,
         "head_dim": 64}  # fmt: skip


def most() -> int:
    """Bytes: the peak of the resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, how = Path(sys.argv[1]), sys.argv[2]
    ranks = Ranks.here()
    config = RunConfig.make({"recipe": "sft", "task": "chain-sum", "token_budget": 256, "shard": "cut" in how,
                             "activation_checkpointing": "checkpointed" in how})  # fmt: skip
    small = tiny_policy(style="tags")  # what libraries allocate once is not the model's
    for policy in (small, tiny_policy(style="tags", **SHAPE)):
        policy.ranks = ranks
        if policy is not small:
            gc.collect()
            before = most() - sum(p.nbytes for p in policy.model.parameters())
        if config.activation_checkpointing:
            policy.checkpointing = True
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        stages = get_recipe("sft")(steps=3, batch=16).stages
        options = Options(shard=config.shard, token_budget=config.token_budget)
        task = get_task(config.task)
        items = estimate(policy.model, stages, task, config, policy.format, ranks.size)
        Fit(policy, stages, task, options=options).run()
    # nothing was sampled
    predicted, _ = peak([item for item in items if item.what != "sampler's cache"])
    print(
        ranks.rank,
        [(i.what, round(i.size / 2**20, 1)) for i in items],
        predicted / 2**20,
        (most() - before) / 2**20,
        flush=True,
    )
    (place / f"{ranks.rank}.txt").write_text(f"{predicted} {most() - before}")
