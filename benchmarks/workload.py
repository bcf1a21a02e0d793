"""What both sides are given: one model folder, one set of files, one reward.

The model is a random Qwen3 of 2.5 M parameters, made by `whet.models.base.create` and then trained for a moment on random
tokens of which one in 40 is the end token. It therefore ends each answer by itself with probability of about 1/40 at
every token, whatever the prompt: answers of 31 tokens on average where 64 are allowed, of 40 where more are. That lives in
its weights, so both sides have it without a trick in either. Learning rates are 1e-7, so that it stays so.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

END = 1 / 40
LEARNING_RATE = 1e-7
WORDS = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "ol")]
SHAPE = {"hidden": 256, "layers": 4, "heads": 4, "kv_heads": 2, "inner": 512}
VOCABULARY = 512
LARGE = 32_768


def letters(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The reward: the share of `a`. What it is does not matter; it differs between answers and costs nothing."""
    return [c.count("a") / max(1, len(c)) for c in completions]


def model(
    folder: Path, *, vocabulary: int = VOCABULARY, shape: Mapping[str, int] = SHAPE, steps: int = 60
) -> Path:  # fmt: skip
    """The model folder, made where it is not there yet; without steps its weights are random."""
    wide = "" if shape == SHAPE else f"-{shape['hidden']}"
    place = folder / f"model-{vocabulary}{wide}{'' if steps else '-random'}"
    if (place / "config.json").exists():
        return place
    import torch

    from whet.models import base

    texts = [" ".join(random.Random(i).choices(WORDS, k=30)) for i in range(300)]
    tokenizer = base.train_tokenizer(texts, VOCABULARY)
    missing = vocabulary - len(tokenizer)
    if missing > 0:
        tokenizer.add_tokens([f"<{i}>" for i in range(missing)])
    policy = base.create(tokenizer, **shape, seed=0)
    if steps:
        _learn_to_end(policy.model, tokenizer, steps)
    policy.format.style, policy.format.fallback = "plain", "raw"
    torch.manual_seed(0)
    policy.save(place)
    return place


def _learn_to_end(model: Any, tokenizer: Any, steps: int) -> None:
    """Independent random words with a constant probability of the end token."""
    import torch

    spoken = [i for i in range(len(tokenizer)) if tokenizer.decode([i]).strip().isalpha()][:200]
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for step in range(steps):
        ids = torch.tensor(spoken)[torch.randint(len(spoken), (16, 24), generator=generator)]
        ids[torch.rand(ids.shape, generator=generator) < END] = tokenizer.eos_token_id
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, 2 * (1 - step / steps))
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def write(folder: Path, name: str, rows: list[dict[str, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def ragged(rng: random.Random, low: int = 4, high: int = 110, mean: float = 3.0, spread: float = 0.8) -> int:
    """A length with many short and few long ones, in words (of about two tokens)."""
    return max(low, min(high, round(rng.lognormvariate(mean, spread))))


def demonstrations(folder: Path, n: int, seed: int = 0) -> Path:
    """Prompts of about 20 tokens, completions of 8 to 220."""
    rng = random.Random(f"sft/{seed}")
    rows = [{"prompt": f"{i} " + text(rng, 8), "answer": text(rng, ragged(rng))} for i in range(n)]
    return write(folder, f"sft-{n}-{seed}", rows)


def full(folder: Path, n: int, tokens: int, tokenizer: Any) -> Path:
    """Demonstrations that fill `tokens` tokens: what the memory of a step is measured with."""
    rng = random.Random("memory")
    rows = []
    for i in range(n):
        prompt, words = f"{i} " + text(rng, 8), rng.choices(WORDS, k=tokens)
        room = tokens - 2 - len(tokenizer(prompt + "\n")["input_ids"])
        answer = tokenizer.decode(tokenizer(" ".join(words), add_special_tokens=False)["input_ids"][:room])
        rows.append({"prompt": prompt, "answer": answer})
    return write(folder, f"full-{n}-{tokens}", rows)


def preferences(folder: Path, n: int, seed: int = 0) -> Path:
    """Prompts of about 60 tokens, and two responses of different lengths."""
    rng = random.Random(f"dpo/{seed}")
    rows = [
        {"prompt": f"{i} " + text(rng, 28), "chosen": text(rng, ragged(rng)), "rejected": text(rng, ragged(rng))}
        for i in range(n)
    ]
    return write(folder, f"dpo-{n}-{seed}", rows)


def questions(folder: Path, n: int, tokens: int, tokenizer: Any, seed: int = 0) -> Path:
    """Prompts of about `tokens` tokens; their answers are never right, since the reward does not ask for it."""
    rng = random.Random(f"grpo/{tokens}/{seed}")
    rows = []
    for i in range(n):
        words = rng.choices(WORDS, k=tokens)
        ids = tokenizer(f"{i} " + " ".join(words), add_special_tokens=False)["input_ids"]
        rows.append({"prompt": tokenizer.decode(ids[: max(1, tokens - 2)]), "answer": "0"})
    return write(folder, f"grpo-{tokens}-{n}-{seed}", rows)


def rows_of(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
