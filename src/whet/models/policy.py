"""Policy: what objectives and RL need of a model, and no more."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whet.models import attention, norms
from whet.models.format import Format
from whet.models.layout import Layout
from whet.models.meter import Meter, Shapes, autocast, entries
from whet.models.packing import OVERHEAD, micro_batches
from whet.models.virtual import Virtual
from whet.ranks import Ranks
from whet.records import Row, Sample
from whet.sampling.sampler import Request, Sampler

log = logging.getLogger("whet")

REARRANGED = 1.08  # what a token of a layout costs over one of a padded row: copies, and masks that skip nothing


class Policy:
    """A causal language model with its tokenizer and format.

    Args:
        model: a Hugging Face causal LM; adapters, where there are any, are already injected into it.
        tokenizer: its tokenizer.
        name: where it came from (a folder or Hub name).
        style, fallback: of its `Format`.
        mixed: run forwards in bf16 autocast over fp32 weights.

    Attributes:
        chunked: whether log-probs can be computed from hidden states a chunk of tokens at a time. It is measured once:
            the head applied to the decoder's output must give the model's own logits.
        peft: the PEFT wrapper around `model`, where adapters were injected.
        fresh_adapters: whether they were made by this run, so that the policy without them is its first one.
        virtual: the virtual tokens before each sequence, where PEFT's prompts or prefixes came in.
        asked_sampler: which sampler it is to have, as `whet.sampling.check_sampler` reads it.
        resting: names of trainable parameters that do not move for the time being; see `rest`.
        always_packs: run as a `Layout` whatever that costs, where it can be: ranks that cut the model run as many forwards each.
        ranks: the processes that share its work.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str = "", style: Any = None, fallback: Any = None,
        mixed: bool = False,
    ) -> None:  # fmt: skip
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.mixed = mixed
        self.peft: Any = None
        self.fresh_adapters = False
        self.virtual: Virtual | None = None
        self.resting: frozenset[str] = frozenset()
        self.modules: nn.ModuleDict = nn.ModuleDict()
        generation = getattr(model, "generation_config", None)
        ends = getattr(generation, "eos_token_id", None)
        end_ids = [ends] if isinstance(ends, int) else list(ends or [])
        self.format = Format(tokenizer, style, fallback, end_ids)
        self.meter = Meter()
        self.ranks = Ranks()
        self.sampler: Sampler | None = None
        self.asked_sampler = "auto"
        self.checkpointing = self.always_packs = False
        self.shapes = Shapes.of(model)
        self._softcap = getattr(model.config, "final_logit_softcapping", None)
        if mixed:
            norms.lighten(model)
        self.chunked = self._head_reproduces_logits()

    # -- what it is -------------------------------------------------------------------------------------------------
    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def max_length(self) -> int:
        """The longest sequence the model takes, in tokens."""
        most = getattr(self.model.config, "max_position_embeddings", None) or 1 << 20
        return most - (self.virtual.length if self.virtual else 0)

    def size(self) -> int:
        """Number of parameters."""
        return sum(map(entries, self.model.parameters()))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters of the model, then of the added modules (`modules.value.weight`)."""
        yield from self.model.named_parameters()
        for name, parameter in self.modules.named_parameters():
            yield f"modules.{name}", parameter

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """By name: what is trained, what rests for the time being among it."""
        return {n: p for n, p in self.named_parameters() if p.requires_grad or n in self.resting}

    def rest(self, names: Collection[str]) -> None:
        """Let these of the trainable parameters rest, and all others move again.

        What rests gets no gradient, and no optimizer keeps moments of it; it is still saved, copied and put back with what moves.
        """
        trainable = self.trainable_parameters()
        self.resting = frozenset(names)
        for name, parameter in trainable.items():
            parameter.requires_grad_(name not in self.resting)
        self.refresh()

    def refresh(self) -> None:
        """Recount after the set of trainable parameters changed."""
        self.shapes = Shapes.of(self.model)

    def remeasure(self) -> None:
        """Modules came in that change how the model runs: what was measured of it is measured again when it is needed."""
        self.sampler = None
        vars(self).pop("packs", None)
        self.chunked = self._head_reproduces_logits()
        self.refresh()

    def frozen(self) -> Policy:
        """A copy that is not trained: with the weights and adapters of now, whatever becomes of this one."""
        copied = copy.copy(self)
        copied.model, copied.peft, copied.sampler = copy.deepcopy(self.model), None, None
        copied.asked_sampler = "auto"  # a server holds the weights of one policy
        copied.resting = frozenset()
        copied.model.requires_grad_(False).eval()
        return copied

    # -- forwards ---------------------------------------------------------------------------------------------------
    def hidden(
        self, ids: Tensor, mask: Tensor | None = None, embeds: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """(B, T, H) last hidden states, the final norm applied.

        Args:
            ids: (B, T) right-padded token ids. A causal model never looks right, so padding needs no mask.
            mask: (B, T) bool; False is not attended to. Only views that hide tokens need it.
            embeds: (B, T, H) input embeddings that replace those of `ids`.
            positions: (B, T) each token's position, where it is not its place in the row: hidden tokens can take none.
        """
        self._count(*self._positions(ids), 0)
        with autocast(self.device, self.mixed):
            return self.decoder(**self._inputs(ids, mask, embeds, positions)).last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """(..., V) logits of hidden states (..., H)."""
        with autocast(self.device, self.mixed):
            logits = self.model.get_output_embeddings()(hidden)
        if self._softcap:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    def logits(
        self, ids: Tensor, mask: Tensor | None = None, embeds: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """(B, T, V) logits by the model's own forward; for architectures whose head cannot be applied in chunks."""
        self._count(*self._positions(ids), ids.numel())
        with autocast(self.device, self.mixed):
            return self.model(**self._inputs(ids, mask, embeds, positions)).logits

    # -- packing ----------------------------------------------------------------------------------------------------
    @cached_property
    def packs(self) -> bool:
        """Whether sequences can be run as a `Layout`: without padding, common beginnings once. It is measured once."""
        inexact = self.mixed or self.dtype.itemsize < 4
        reason = "its head cannot be separated" if not self.chunked else None
        reason = "virtual tokens have no place in a packed row" if self.virtual else reason
        training = self.model.training
        self.model.eval()
        try:
            with autocast(self.device, self.mixed):
                reason = reason or attention.disagreement(self.model, self.decoder, 0.1 if inexact else 1e-3)
        finally:
            self.model.train(training)
        if reason:
            log.info("training: plain padding, prompts are not shared; %s: %s", type(self.model).__name__, reason)
        return reason is None

    def layout(self, sequences: Sequence[Sequence[int]]) -> Layout | None:
        """How to run token sequences at the least estimated cost; None is right-padded."""
        width = max(map(len, sequences), default=0)
        if not self.packs or not width:
            return None
        layout = Layout.of(sequences, self.device)
        cost = self.shapes.forward(len(layout), layout.pairs / len(layout))
        padded = self.shapes.forward(len(sequences) * width, width)
        return layout if self.always_packs or REARRANGED * cost < padded else None

    def laid_out(self, layout: Layout) -> Tensor:
        """(N, H) last hidden states of a layout's tokens, the final norm applied."""
        self._count(len(layout), layout.pairs / len(layout), 0)
        with autocast(self.device, self.mixed):
            return attention.forward(self.model, self.decoder, layout)

    def micro_batches(
        self,
        rows: Sequence[Row],
        token_budget: int,
        key: Callable[[Row], object] | None = None,
        *,
        padded: bool = False,
    ) -> list[list[Row]]:
        """Rows cut as this model runs them best; `padded` where a view keeps them from being packed."""
        # a GPU waits for the launches of a micro-batch's kernels, in which it could run some hundred tokens
        overhead = OVERHEAD if self.device.type == "cpu" else 8 * OVERHEAD
        return micro_batches(rows, token_budget, key=key, packed=self.packs and not padded, overhead=overhead)

    def count_head(self, tokens: int) -> None:
        """Count the vocabulary projection of `tokens` learnt tokens."""
        self._count(0, 0, tokens)

    def embed(self, ids: Tensor) -> Tensor:
        """(B, T, H) input embeddings."""
        return self.model.get_input_embeddings()(ids)

    @property
    def decoder(self) -> nn.Module:
        """The model without its head."""
        found = self.model.get_decoder() if hasattr(self.model, "get_decoder") else None
        return found if found is not None and found is not self.model else self.model.base_model

    @contextlib.contextmanager
    def adapters_off(self) -> Iterator[None]:
        """The base under the adapters, inside the context."""
        with self.peft.disable_adapter():
            yield

    @contextlib.contextmanager
    def metered(self, meter: Meter) -> Iterator[Meter]:
        """Count into another meter inside the context (evaluation does not spend the training budget)."""
        before, self.meter = self.meter, meter
        try:
            yield meter
        finally:
            self.meter = before

    # -- sampling ---------------------------------------------------------------------------------------------------
    def sample(self, requests: Sequence[Request], on_token: Any = None) -> list[list[Sample]]:
        """Answers to each request, cut into segments by the format (dropout off, no gradient).

        An answer depends on its request alone, so that each rank may answer a share of them.
        """
        if self.sampler is None:
            from whet.sampling import choose_sampler

            self.sampler = choose_sampler(self)
        sampler = self.sampler
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                if prepare := getattr(sampler, "prepare", None):
                    prepare(self)
                return self.ranks.map(
                    lambda own: sampler.sample(self, own, on_token), requests, cost=lambda request: len(request.seeds)
                )
        finally:
            self.model.train(training)

    # -- disk -------------------------------------------------------------------------------------------------------
    def save(self, folder: str | Path) -> None:
        """A plain Hugging Face folder, or a plain PEFT folder where adapters were trained."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (self.peft or self.model).save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
        note = {"style": self.format.style, "fallback": self.format.fallback}
        if self.format.condition:
            note["condition"] = self.format.condition
        (folder / "whet.json").write_text(json.dumps(note))

    # -- inside -----------------------------------------------------------------------------------------------------
    def _inputs(
        self, ids: Tensor, mask: Tensor | None, embeds: Tensor | None, positions: Tensor | None = None
    ) -> dict[str, Any]:  # fmt: skip
        source = {"input_ids": ids} if embeds is None else {"inputs_embeds": embeds}
        if positions is not None:
            source["position_ids"] = positions
        return {**source, "attention_mask": None if mask is None else mask.long(), "use_cache": False}

    def _positions(self, ids: Tensor) -> tuple[int, int]:
        """How many positions are run of padded rows, and to how many each attends."""
        run, length = (self.virtual.run, self.virtual.length) if self.virtual else (0, 0)
        return ids.numel() + run * len(ids), ids.shape[1] + length

    def _count(self, tokens: int, keys: float, head_tokens: int) -> None:
        shapes = self.shapes
        cost = shapes.forward(tokens, keys, head_tokens)
        if torch.is_grad_enabled():
            cost += shapes.backward(tokens, keys, head_tokens)
            cost += shapes.forward(tokens, keys) if self.checkpointing else 0.0
        self.meter.flops += cost

    @torch.no_grad()
    def _head_reproduces_logits(self) -> bool:
        if not hasattr(self.model, "get_output_embeddings") or self.model.get_output_embeddings() is None:
            return False
        ids = torch.arange(1, 6, device=self.device)[None] % self.model.config.vocab_size
        inputs = self._inputs(ids, None, None)
        training = self.model.training
        self.model.eval()
        try:
            with autocast(self.device, self.mixed):
                own = self.model(**inputs).logits
                ours = self.head(self.decoder(**inputs).last_hidden_state)
        finally:
            self.model.train(training)
        scale = max(float(own.abs().max()), 1e-6)
        return own.shape == ours.shape and math.isfinite(scale) and float((own - ours).abs().max()) <= 1e-3 * scale
