"""`whet merge`: arithmetic on finished weights, a tensor at a time, with the result looked at before it is left there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from whet.errors import WhetError, unknown
from whet.models import base
from whet.models.policy import Policy
from whet.terminal.console import amount, console, quiet_libraries, table
from whet.terminal.weights import OPERATIONS
from whet.weights.delta import Applied, WeightDelta, apply, is_delta, open_model
from whet.weights.files import Match, Shards, Stored, match, same_tokens

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROMPTS, LENGTH = 8, 16  # of what the written model and the live one are compared on
Weights = Stored | Applied


def merge(operation: str, sources: Sequence[str], *, out: Path | None, scale: float | None = None, dtype: str | None = None,
          tolerance: float = 1e-4, dry_run: bool = False) -> None:  # fmt: skip
    """What `whet merge` does.

    Raises:
        WhetError: something does not match, or the written model is not the live one.
    """
    quiet_libraries()
    if operation not in OPERATIONS:
        raise unknown("operation", operation, OPERATIONS)
    if dtype is not None and dtype not in DTYPES:
        raise WhetError(f"dtype '{dtype}': one of {', '.join(DTYPES)}")
    least, most = {"add": (2, 99), "subtract": (2, 2), "scale": (1, 1), "compose": (2, 99), "interpolate": (2, 2)}[
        operation
    ]
    if not least <= len(sources) <= most:
        raise WhetError(f"{operation} takes {least}{' or more' if most > least else ''} sources, not {len(sources)}")
    if out is None and not dry_run:
        raise WhetError("give --out DIR, or --dry-run to see what matches")
    if out is not None and out.exists() and any(out.iterdir()):
        raise WhetError(f"'{out}' is not empty")
    if operation == "interpolate" or operation == "add":
        _model(operation, sources, out, scale, dtype, tolerance, dry_run)
    else:
        _delta(operation, sources, out, scale, dry_run)


def _model(
    operation: str,
    sources: Sequence[str],
    out: Path | None,
    scale: float | None,
    dtype: str | None,
    tolerance: float,
    dry: bool,
) -> None:
    """MODEL + scale * (sum of differences), where a second model of `interpolate` is the difference to it."""
    target = open_model(sources[0])
    factor = scale if scale is not None else 0.5 if operation == "interpolate" else 1.0
    if operation == "interpolate":
        end = open_model(sources[1])
        found = [(sources[1], match(target.shapes, end.shapes))]
    else:
        deltas = [_difference(s) for s in sources[1:]]
        found = [(s, d.match(target)) for s, d in zip(sources[1:], deltas, strict=True)]
    tokens = [same_tokens(target.folder, Path(base.resolve(s))) for s in sources[1:]]
    _show(sources[0], found, tokens)
    for (_, pairs), same in zip(found, tokens, strict=True):
        pairs.check(*(sources[:2] if operation == "interpolate" else ("the difference", sources[0])))
        if same is False:
            raise WhetError(
                f"'{sources[0]}' and what is added have other tokens: their embedding rows do not mean the same"
            )
    if operation == "interpolate":
        delta = factor * WeightDelta.between(end, target)
    else:
        # a factor of 1 leaves heads as they are, which have no multiple
        scaled = [d if factor == 1.0 else factor * d for d in deltas]
        delta = sum(scaled[1:], scaled[0])
    if dry or out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    _copy_rest(target.folder, out)
    shards = Shards(out)
    for name, tensor in apply(target, delta, DTYPES[dtype] if dtype else None):
        shards.add(name, tensor)
    shards.close()
    if tolerance:
        adapters = (
            operation == "add"
            and len(sources) == 2
            and factor == 1.0
            and (Path(sources[1]) / "adapter_config.json").exists()
        )
        _look(out, lambda: base.load(sources[1], device="cpu") if adapters else _live(sources[0], delta), tolerance)
    console().print(f"[dim]model[/]  {out}", soft_wrap=True)


def _delta(operation: str, sources: Sequence[str], out: Path | None, scale: float | None, dry: bool) -> None:
    if operation == "subtract":
        delta = _subtracted(*sources).compact()
    else:
        parts = [_difference(s) for s in sources]
        delta = parts[0]
        for other in parts[1:]:
            delta = delta + other
    if scale is not None:
        delta = scale * delta
    size = sum(torch.Size(s).numel() for s in delta.shapes.values())
    screen = console()
    screen.print(f"{len(delta)} tensors of {amount(size)} entries")
    if dry or out is None:
        return
    delta.save(out)
    screen.print(f"[dim]difference[/]  {out}", soft_wrap=True)


def _subtracted(after: str, before: str) -> WeightDelta:
    if is_delta(after) and is_delta(before):
        return WeightDelta.load(after) - WeightDelta.load(before)
    one, two = open_model(after), open_model(before)
    if same_tokens(one.folder, two.folder) is False:
        raise WhetError(f"'{after}' and '{before}' have other tokens: their embedding rows do not mean the same")
    _show(before, [(after, match(two.shapes, one.shapes))], [])
    return WeightDelta.between(one, two)


def _difference(source: str) -> WeightDelta:
    return WeightDelta.load(source if is_delta(source) else base.resolve(source))


def _show(first: str, found: Sequence[tuple[str, Match]], tokens: Sequence[bool | None]) -> None:
    """What matches and what does not. Of a long path the end is shown, so that the numbers have room."""
    made = table(
        "with " + _end(first),
        "match",
        "other shape",
        "only here",
        "only there",
        "tokens",
        right=("match", "other shape", "only here", "only there"),
    )
    words = {True: "the same", False: "[red]others[/]", None: "-"}
    for place, (name, pairs) in enumerate(found):
        made.add_row(_end(name), str(len(pairs.pairs)), str(len(pairs.shapes)), str(len(pairs.ours)), str(len(pairs.theirs)),
                     words[tokens[place] if place < len(tokens) else None])  # fmt: skip
    screen = console()
    screen.print(made)
    for _, pairs in found:
        for line in pairs.problems():
            screen.print(f"[yellow]{line}[/]", soft_wrap=True)


def _end(path: str, most: int = 16) -> str:
    return path if len(path) <= most else "…" + path[1 - most :]


def _copy_rest(source: Path, out: Path) -> None:
    """Everything of a model folder that is no weights: configuration, tokenizer, format."""
    if not source.is_dir():
        raise WhetError(
            f"'{source}' is a bare file of weights: a merged model needs a folder with its configuration and tokenizer"
        )
    for file in source.iterdir():
        if (
            file.is_file()
            and ".safetensors" not in file.name
            and not file.name.startswith(("adapter_", "."))
            and file.suffix != ".bin"
        ):
            shutil.copy2(file, out / file.name)


def _live(target: str, delta: WeightDelta) -> Policy:
    policy = base.load(target, device="cpu")
    if policy.peft is not None:
        policy.model, policy.peft = policy.peft.merge_and_unload(), None
    delta.add_to(policy)
    return policy


@torch.no_grad()
def _look(out: Path, live: Callable[[], Policy], tolerance: float) -> None:
    """Compare the log-probs of the written model with the live one's, and remove it where they differ."""
    found: list[Tensor] = []
    for policy in (live(), base.load(out, device="cpu")):
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(policy.model.config.vocab_size, (PROMPTS, LENGTH), generator=draw)
        found.append(policy.logits(ids).float().log_softmax(-1))
    worst = float((found[0] - found[1]).abs().max())
    if not worst <= tolerance:
        shutil.rmtree(out)
        raise WhetError(f"the merged model's log-probs differ from the live model's by {worst:.2g}, more than {tolerance:g}: nothing was "
                        "written; write it in --dtype float32, or allow more by --tolerance")  # fmt: skip
    console().print(f"[dim]log-probs of the written and the live model differ by at most {worst:.1e}[/]")
