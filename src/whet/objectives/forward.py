"""Forward and Context: the forwards that the terms of an objective share.

The batch x length x vocabulary tensor never exists: the head is applied to the hidden states of learnt tokens only, a
chunk at a time, and recomputed in the backward when keeping it would cost memory.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from whet.errors import WhetError
from whet.models.layout import Index
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.objectives.views import Clean, View
from whet.records import Row

log = logging.getLogger("whet")

Scope = Callable[[], contextlib.AbstractContextManager[Any]]

# Logits that exist at once; above it chunks are recomputed in the backward. 16 MiB in fp32 stay in a CPU's cache: with a
# vocabulary of 32,768 a step took 18 % less time than with 64 MiB. With few tokens a product only reads the weights.
CHUNK_VALUES, CHUNK_TOKENS = 1 << 22, 128

NORMALISERS = ("token", "sequence", "sequence-sum", "constant", "row", "none")


class Forward:
    """One pass over a batch; every property is over its N learnt tokens and computed when first asked for.

    Args:
        hidden: (N, H) states at the positions *before* the learnt tokens, or None where the head cannot be separated.
        logits: (N, V), instead of `hidden` for such architectures.
        temperature: divides the logits; the same one that sampled them.
        grad: whether a gradient may flow. The head is applied later than the layers, so it has to be remembered: else a
            reference without a gradient would still pull at a head that is trained.
        scope: a context in which the head is applied too (adapters off).
    """

    def __init__(
        self,
        policy: Policy,
        batch: Batch,
        hidden: Tensor | None,
        logits: Tensor | None,
        temperature: float = 1.0,
        *,
        grad: bool = True,
        scope: Scope = contextlib.nullcontext,
    ) -> None:
        self.policy = policy
        self.batch = batch
        self._hidden = hidden
        self._logits = logits
        self.temperature = temperature
        self.grad = grad
        self._scope = scope

    @property
    def hidden(self) -> Tensor:
        """(N, H) last hidden states before each learnt token: the state in which the token was chosen."""
        if self._hidden is None:
            raise WhetError(f"the hidden states of {type(self.policy.model).__name__} cannot be read off its decoder")
        return self._hidden

    @cached_property
    def logprobs(self) -> Tensor:
        """(N,) log-probability of each learnt token."""
        return self.per_token(token_logprob)

    @cached_property
    def entropy(self) -> Tensor:
        """(N,) entropy of the distribution that each learnt token was chosen from, in nats."""
        return self.per_token(entropy)

    def per_token(self, fn: Callable[..., Tensor], *others: Forward) -> Tensor:
        """(N,) values of `fn(logits (n, V), targets (n,), *other forwards' logits (n, V)) -> (n,)`, in chunks.

        Exact KL and any other function of the full vocabulary, without the full tensor.
        """
        everyone = (self, *others)
        targets = self.batch.targets
        if any(len(o.batch.targets) != len(targets) for o in others):
            raise WhetError("per_token: the forwards do not learn the same tokens")
        width = self._logits.shape[-1] if self._logits is not None else self.policy.model.config.vocab_size
        chunk = chunk_tokens(width)
        sources = [f._source for f in everyone]

        def part(t: Tensor, *states: Tensor) -> Tensor:
            first, *rest = (f._project(s) for f, s in zip(everyone, states, strict=True))
            return fn(first, t, *rest)

        if len(targets) <= chunk:
            return part(targets, *sources)
        out = []
        for start in range(0, len(targets), chunk):
            pieces = [s[start : start + chunk] for s in sources]
            t = targets[start : start + chunk]
            grad = torch.is_grad_enabled() and any(f.grad for f in everyone)
            out.append(checkpoint(part, t, *pieces, use_reentrant=False) if grad else part(t, *pieces))
        return torch.cat(out)

    @property
    def _source(self) -> Tensor:
        source = self._hidden if self._hidden is not None else self._logits
        assert source is not None, "a forward holds hidden states or logits"
        return source

    def _project(self, state: Tensor) -> Tensor:
        if self._hidden is None:
            logits = state
        else:
            with torch.set_grad_enabled(self.grad and torch.is_grad_enabled()), self._scope():
                logits = self.policy.head(state)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits if self.temperature == 1.0 else logits / self.temperature

    # -- reductions -------------------------------------------------------------------------------------------------
    def values(self, name: str) -> Tensor:
        """(N,) the samples' `per_token[name]`."""
        return self.batch.values(name, self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.policy.dtype == torch.float64 else torch.float32

    def by_sequence(self, values: Tensor, *, mean: bool = False) -> Tensor:
        """(B,) sums (or means over learnt tokens) of (N,) values in each sequence."""
        total = torch.zeros(len(self.batch.samples), dtype=values.dtype, device=values.device)
        total = total.index_add(0, self.batch.sequence, values)
        return total / self.batch.lengths.clamp(min=1) if mean else total

    def reduce(self, values: Tensor, normalise: str, *, weighted: bool = True) -> Tensor:
        """The sum that the trainer divides by `count(normalise, rows)`: see `objectives.objective.count`."""
        if weighted:
            values = values * self.batch.weights.to(values.dtype)
        if normalise == "sequence":
            return self.by_sequence(values, mean=True).sum()
        return values.sum()


def chunk_tokens(vocabulary: int) -> int:
    """Learnt tokens that are projected onto the vocabulary at once."""
    return max(CHUNK_TOKENS, CHUNK_VALUES // vocabulary)


def token_logprob(logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) log-softmax at the targets."""
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)


def entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) entropy in nats."""
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def kl(logits: Tensor, targets: Tensor, other: Tensor) -> Tensor:
    """(n,) exact KL(softmax(logits) || softmax(other))."""
    logprobs = logits.log_softmax(-1)
    return (logprobs.exp() * (logprobs - other.log_softmax(-1))).sum(-1)


@dataclass(frozen=True)
class Whole:
    """The optimizer batch that a micro-batch is a part of, for terms in which its rows meet.

    Attributes:
        rows: all of them, those of other ranks too.
        places: of the micro-batch's rows among them.
        states: by term, (rows, D) what each row brings, without a gradient.
    """

    rows: Sequence[Row]
    places: Sequence[int]
    states: Mapping[str, Tensor]


@dataclass
class Context:
    """What the terms of an objective see of a micro-batch.

    Attributes:
        rows: the micro-batch.
        policies: who may be run forward: `policy`, and where an objective asks for it `reference`.
        counts: the objective's counts over the whole optimizer batch.
        seed: the step's seed, for views that draw.
        temperature: divides logits in every forward.
        budget: the generation budget of the `constant` normaliser, in tokens.
        step, steps: optimizer steps done in the stage and to be done in it, for schedules.
        together: roles whose samples are run together where one of them is asked for, as they may share prompts.
        whole: the optimizer batch, where rows of it meet and this is only a part; None where this is all of it.
    """

    rows: Sequence[Row]
    policies: Mapping[str, Policy]
    counts: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    temperature: float = 1.0
    budget: int = 0
    step: float = 0.0
    steps: int = 1
    together: frozenset[str] = frozenset()
    whole: Whole | None = None
    logs: dict[str, list[Tensor]] = field(default_factory=dict)
    _batches: dict[str, Batch] = field(default_factory=dict)
    _views: dict[Any, View] = field(default_factory=dict)
    _forwards: dict[Any, Forward] = field(default_factory=dict)

    @property
    def policy(self) -> Policy:
        return self.policies["policy"]

    def batch(self, name: str) -> Batch:
        """All samples of a role in this micro-batch, rows in order."""
        if name not in self._batches:
            samples = [s for row in self.rows for s in row.get(name)]
            if not samples:
                raise WhetError(f"no row of this batch has a '{name}' sample")
            self._batches[name] = Batch.of(samples, self.policy.device)
        return self._batches[name]

    def forward(self, name: str, view: View | None = None, who: str = "policy", grad: bool = True) -> Forward:
        """Run (or share) a forward over the samples of a role."""
        view = self._resolve(name, view or Clean())
        grad = grad and who == "policy" and torch.is_grad_enabled()
        key = (name, view, who, grad)
        if key not in self._forwards:
            if who not in self.policies:
                raise WhetError(f"this objective needs a '{who}' model and the stage has none")
            policy, batch = self.policies[who], self.batch(name)
            # where the reference is the policy itself, its forward runs with the adapters off
            scope = policy.adapters_off if who != "policy" and policy is self.policy else contextlib.nullcontext
            with torch.set_grad_enabled(grad):
                if isinstance(view, Clean) and grad and name in self.together:
                    names = sorted(r for r in self.together if any(row.get(r) for row in self.rows))
                    found = run_together(policy, [self.batch(n) for n in names], self.temperature, scope)
                    self._forwards |= {(n, view, who, grad): f for n, f in zip(names, found, strict=True)}
                else:
                    self._forwards[key] = run(policy, batch, view, self.seed, self.temperature, scope)
        return self._forwards[key]

    def _resolve(self, name: str, view: View) -> View:
        """The view as it is at this step; asked for once, or two terms would not share its forward."""
        if (name, view) not in self._views:
            self._views[name, view] = view.at(self, name)
        return self._views[name, view]

    def reference_logprobs(self, name: str) -> Tensor:
        """(N,) log-probs of the reference; read from the samples where they were scored beforehand."""
        batch = self.batch(name)
        if all("reference_logprob" in s.per_token for s in batch.samples):
            return batch.values("reference_logprob", self.dtype)
        return self.forward(name, who="reference", grad=False).logprobs

    @property
    def dtype(self) -> torch.dtype:
        """fp64 where the policy is, else fp32."""
        return torch.float64 if self.policy.dtype == torch.float64 else torch.float32

    def numbers(self, name: str, role: str | None = None, default: float | None = None) -> Tensor:
        """(rows,) a number of each row; with a role, (B,) the number of each of its samples' rows."""
        found: list[float] = []
        for row in self.rows:
            value = row.numbers.get(name, default)
            if value is None:
                raise WhetError(f"a row of problem '{row.problem_id}' has no number '{name}'")
            found += [value] * (1 if role is None else len(row.get(role)))
        return torch.tensor(found, dtype=self.dtype, device=self.policy.device)

    def log(self, name: str, value: Tensor) -> None:
        """Note values for the metrics; the loop reports their mean."""
        self.logs.setdefault(name, []).append(value.detach().float().reshape(-1).cpu())


def run(
    policy: Policy, batch: Batch, view: View, seed: int, temperature: float, scope: Scope = contextlib.nullcontext
) -> Forward:
    """A forward of a policy over a batch under a view; without a gradient where none is enabled now."""
    if isinstance(view, Clean):
        return run_together(policy, [batch], temperature, scope)[0]
    if policy.packs:
        _say_padded(type(view).__name__)
    return _padded(policy, batch, view, seed, temperature, scope)


def run_together(
    policy: Policy, batches: Sequence[Batch], temperature: float, scope: Scope = contextlib.nullcontext
) -> list[Forward]:
    """Forwards over batches as they are. What sequences of any of them begin with alike is run once, where that pays."""
    sequences = [ids for batch in batches for ids in batch.wanted()]
    layout = policy.layout(sequences)
    if layout is None:
        return [_padded(policy, batch, Clean(), 0, temperature, scope) for batch in batches]
    with scope():
        states = policy.laid_out(layout)
    forwards, first = [], 0
    for batch in batches:
        hidden = Index.of(layout.find(batch.sequence + first, batch.position - 1)).gather(states)
        forwards.append(_made(policy, batch, hidden, None, temperature, scope))
        first += len(batch.samples)
    return forwards


def _padded(policy: Policy, batch: Batch, view: View, seed: int, temperature: float, scope: Scope) -> Forward:
    before = batch.position - 1
    hidden = logits = None
    with scope(), view.around(policy, batch, seed):
        seen = view.see(policy, batch, seed)
        if policy.chunked:
            hidden = policy.hidden(seen.ids, seen.mask, seen.embeds, seen.positions)[batch.sequence, before]
        else:
            logits = policy.logits(seen.ids, seen.mask, seen.embeds, seen.positions)[batch.sequence, before]
    return _made(policy, batch, hidden, logits, temperature, scope)


def _made(
    policy: Policy, batch: Batch, hidden: Tensor | None, logits: Tensor | None, temperature: float, scope: Scope
) -> Forward:
    """The forward of the states that were found, counted."""
    grad = torch.is_grad_enabled()
    if not grad:
        policy.meter.scored_tokens += int(batch.mask.sum())
    if hidden is not None:
        policy.count_head(len(batch.targets))
    return Forward(policy, batch, hidden, logits, temperature, grad=grad, scope=scope)


@cache
def _say_padded(view: str) -> None:
    log.info("training: plain padding under the view %s, prompts are not shared", view)
