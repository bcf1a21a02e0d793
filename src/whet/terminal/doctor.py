"""`whet doctor`: versions, devices, threads, and what a run would ask of the memory."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from whet import __version__
from whet.config import RunConfig
from whet.errors import WhetError
from whet.launch import set_threads
from whet.models import base, trust
from whet.models.format import Format
from whet.recipes.recipe import get_recipe
from whet.sandbox.backends import probe
from whet.tasks import get_task
from whet.terminal.console import console, quiet_libraries
from whet.terminal.memory import estimate, memory_table, moving

NEEDED = ("whet", "torch", "transformers", "tokenizers", "safetensors", "peft", "pydantic", "typer", "rich")
EXTRAS = {"reasoning-gym": "tasks", "math-verify": "tasks", "gymnasium": "tasks", "datasets": "data",
          "accelerate": "scale", "ray": "scale", "bitsandbytes": "quant"}  # fmt: skip


def doctor(config: RunConfig, gpus: int = 1) -> None:
    """Print what the machine has and what the run of `config` would take. No weights are loaded.

    Args:
        gpus: ranks that would share it.
    """
    quiet_libraries()
    screen = console()
    set_threads(0)
    made = Table.grid(padding=(0, 3))
    made.add_column(style="dim")
    made.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    for name in NEEDED:
        made.add_row(name, Text(version(name) or "missing", style="" if version(name) else "red"))
    for name, extra in EXTRAS.items():
        made.add_row(
            name, Text(version(name) or f"not there: pip install 'whet[{extra}]'", style="" if version(name) else "dim")
        )
    made.add_row("devices", ", ".join(devices()))
    made.add_row("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores")
    made.add_row("model's code", sandbox())
    for name in base.SHIPPED:
        made.add_row(f"shipped {name}", shipped(name))
    screen.print(made)
    screen.print()
    model, tokenizer = shapes(
        config.model, allow_pickle=config.allow_pickle, trust_remote_code=config.trust_remote_code
    )
    recipe = get_recipe(config.recipe)(**config.arguments)
    items = estimate(model, recipe.stages, get_task(config.task), config, Format(tokenizer), gpus)
    moves = ", then ".join(dict.fromkeys(weights.name for weights in moving(recipe.stages, config)))
    screen.print(f"[bold]{config.recipe}[/] with [bold]{config.model or 'base'}[/]  [dim]weights {moves}, "
                 f"{config.dtype}, --token-budget {config.token_budget}"
                 f"{f', each of {gpus} ranks' if gpus > 1 else ''}{', --shard' if config.shard else ''}[/]")  # fmt: skip
    screen.print(memory_table(items))


def shapes(model: str | None, *, allow_pickle: bool = False, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """A model of the right shapes on no device, and its tokenizer. What the folder may bring is as in `base.load`."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = base.resolve(model)
    adapter = Path(source) / "adapter_config.json"
    if adapter.exists():
        trust.check(source, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
        source = base.resolve(trust.adapter_base(adapter))
    if Path(source).exists() and not (Path(source) / "config.json").exists():
        raise WhetError(f"'{source}' is not a model folder: it has neither config.json nor adapter_config.json")
    trust.check(source, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    code = {"trust_remote_code": trust_remote_code}
    try:
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source, **code), **code)
        return made, AutoTokenizer.from_pretrained(source, **code)
    except (OSError, ValueError, KeyError) as problem:
        raise WhetError(f"model '{source}' could not be read: {str(problem).strip().splitlines()[0]}") from problem


def devices() -> list[str]:
    """What torch can compute on."""
    found = ["cpu"]
    found += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return found + (["mps"] if torch.backends.mps.is_available() else [])


def sandbox() -> str:
    """Where programs that a model wrote would run, and what that does not stop."""
    try:
        return f"runs in {probe().line()}"
    except WhetError as problem:
        return f"[red]is not run[/]: {problem}"


def shipped(name: str) -> str:
    """Where a base that ships with the package lies."""
    folder = base.shipped(name)
    return str(folder) if (folder / "config.json").exists() else f"[red]missing[/] in {folder}"


def version(package: str) -> str | None:
    """The installed version; Whet itself need not be installed to be run."""
    try:
        return __version__ if package == "whet" else metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
