"""The bases that ship with the package: what they were made of, and the command that makes them again.

    whet base build base --out runs/base

A base's file (`models/shipped/<name>.yaml`) holds the tokenizer's size, the shape, the mixture and the schedule.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from whet.errors import WhetError, unknown
from whet.models import base as models
from whet.models.policy import Policy
from whet.recipes.supervised.pretrain import pretrain
from whet.runs import RunFolder, index
from whet.sources import Mixture, Part
from whet.tasks import get_task
from whet.training.fit import Fit, Observer, Options

log = logging.getLogger("whet")

KEYS = {"vocabulary", "shape", "steps", "batch", "lr", "seed", "mixture"}


def describe(name: str) -> dict[str, Any]:
    """The file of a shipped base, or of one's own (a path that ends in .yaml); `planner.yaml` ships as a file alone."""
    own = name.endswith((".yaml", ".yml"))
    file = Path(name) if own else models.shipped(name).with_suffix(".yaml")
    if own and not file.exists() and file.name == name:
        file = models.shipped(name)
    if not file.exists():
        raise WhetError(f"'{name}': no such file") if own else unknown("shipped base", name, models.SHIPPED)
    described = yaml.safe_load(file.read_text())
    missing = KEYS - set(described) if isinstance(described, dict) else KEYS
    if missing:
        raise WhetError(f"'{file}' describes no base: it lacks {', '.join(sorted(missing))}")
    return described


def cached(name: str, observer: Observer | None = None) -> Path:
    """The model folder of a base described by a file; pretrained on demand, once for each description.

    A study that needs a mixture of its own names its file as the model. Everything that decides the weights is in the
    file, so its hash is the folder's name below `$WHET_HOME/bases`.
    """
    described = describe(name)
    key = hashlib.blake2b(json.dumps(described, sort_keys=True).encode(), digest_size=8).hexdigest()
    out = index.place().parent / "bases" / key
    if not (out / "model" / "whet.json").exists():
        log.warning("pretraining the base of '%s' into %s: once, and resumed if it is stopped", name, out)
        build(name, out, observer=observer)
    return out / "model"


def parts(described: dict[str, Any]) -> list[Part]:
    return [Part(get_task(row["task"]), **{k: v for k, v in row.items() if k != "task"})
            for row in described["mixture"]]  # fmt: skip


def texts(mixture: list[Part], n: int = 6000) -> list[str]:
    """Texts that the tokenizer is trained on."""
    source = Mixture(mixture)
    source.bind(mixture[0].task, 1)
    drawn = [(p, p.plan if source.part_of(p).form == "follow" else "") for p in source.draw(n)]
    return [text for p, plan in drawn for text in (p.prompt, p.rationale, p.answer or "", plan)]


def build(name: str, out: Path, *, steps: int | None = None, observer: Observer | None = None,
          stop: Callable[[], bool] | None = None) -> Policy:  # fmt: skip
    """Pretrain a base into `out` (resumed where it stopped) and export it to `out/model` when it is finished."""
    described = describe(name)
    mixture = parts(described)
    resume = (out / "run.yaml").exists()
    folder = RunFolder.open(out) if resume else RunFolder.create(out)
    if not resume:
        models.train_tokenizer(texts(mixture), described["vocabulary"]).save_pretrained(out / "tokenizer")
        folder.config.write_text(yaml.safe_dump(described, sort_keys=False))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    policy = models.create(tokenizer, **described["shape"], seed=described["seed"])
    policy.mixed = described.get("dtype") == "mixed"
    recipe = pretrain(parts=mixture, steps=steps or described["steps"], batch=described["batch"], lr=described["lr"])
    # documents are short and ragged: on a processor small micro-batches pad less and cost nothing else (0.42 s a step
    # where 4096 tokens took 0.58)
    options = Options(seed=described["seed"], token_budget=1024, save_every=250, keep="last",
                      milestones=True, stop=stop)  # fmt: skip
    fit = Fit(policy, recipe.stages, mixture[0].task, options=options, folder=folder, observer=observer)
    if fit.run(resume).finished:
        export(policy, folder.model)
    return policy


def export(policy: Policy, folder: Path) -> None:
    """Save in bf16, with the hash of the weights beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    policy.model.to(torch.bfloat16)
    policy.save(folder)
    policy.model.to(torch.float32)
    note = folder / "whet.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "hash": models.weights_hash(policy.model)}))
