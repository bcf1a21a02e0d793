"""Virtual tokens: the soft prompts and prefixes of PEFT, before every sequence that a model runs.

    prompt    [P; E(x)] -> decoder -> the states of x       P (k, H) is learnt (or made by an encoder: P-tuning)
    prefix    in each layer k learnt keys and values stand before those of x

PEFT brings them in by a wrapper, which passes by whoever runs the model inside it, or its decoder alone. Here they come in by hooks
of the decoder, so that every forward has them: positions go on behind them, a mask is longer by them, and a cache that holds them
gets no more. A packed row has no place for them, so that training pads; the log says so.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from whet.errors import WhetError

if TYPE_CHECKING:
    from whet.models.policy import Policy


class Virtual:
    """The virtual tokens of a PEFT model, as hooks of its decoder.

    Attributes:
        length: k.
        run: how many of them run through the layers: k, and 0 of a prefix.
    """

    def __init__(self, peft: Any) -> None:
        config = peft.active_peft_config
        self.peft = peft
        self.prefix = str(getattr(config.peft_type, "value", config.peft_type)) == "PREFIX_TUNING"
        self.length = int(config.num_virtual_tokens)
        self.run = 0 if self.prefix else self.length
        self.added = 0

    def before(
        self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        """Put them before what the decoder is given."""
        self.added = 0
        if self.peft._adapters_disabled:
            return None
        given = dict(inspect.signature(decoder.forward).bind_partial(*args).arguments) | kwargs
        if given.get("layout") is not None:
            raise WhetError("virtual tokens have no place in a packed row")
        cache = given.get(self._cache(decoder))
        seen = cache.get_seq_length() if cache is not None else 0
        source = given["input_ids"] if given.get("inputs_embeds") is None else given["inputs_embeds"]
        rows, length = source.shape[:2]
        given["attention_mask"] = _longer(given.get("attention_mask"), rows, (seen or self.length) + length)
        if given.get("position_ids") is not None:
            given["position_ids"] = given["position_ids"] + self.length
        if not seen:
            self._put(decoder, given, rows)
        return (), given

    def after(self, decoder: Any, args: tuple[Any, ...], output: Any) -> Any:
        """Take their states from what the decoder gives on."""
        if not self.added:
            return None
        if hasattr(output, "last_hidden_state"):
            output.last_hidden_state = output.last_hidden_state[:, self.added :]
            return output
        return (output[0][:, self.added :], *output[1:])

    def _put(self, decoder: Any, given: dict[str, Any], rows: int) -> None:
        made = self.peft.get_prompt(rows)
        if self.prefix:
            name = self._cache(decoder)
            cache = given.get(name)
            if cache is None:
                given[name] = made
                return
            for index, layer in enumerate(made.layers):
                cache.update(layer.keys, layer.values, index)
            return
        embeds = given.get("inputs_embeds")
        if embeds is None:
            embeds = decoder.get_input_embeddings()(given["input_ids"])
        given |= {"input_ids": None, "inputs_embeds": torch.cat([made.to(embeds.dtype), embeds], 1)}
        positions = given.get("position_ids")
        if positions is not None:
            first = torch.arange(self.length, device=positions.device).expand(*positions.shape[:-1], self.length)
            given["position_ids"] = torch.cat([first, positions], -1)
        self.added = self.length

    @staticmethod
    def _cache(decoder: Any) -> str:
        """What this version of transformers calls it."""
        return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


def install(policy: Policy, peft: Any) -> None:
    """Give a policy the virtual tokens of a PEFT model around its own."""
    policy.virtual = Virtual(peft)
    policy.model.prompt_encoder = peft.prompt_encoder  # so that their parameters are among the model's
    peft.merge_and_unload = _unmergeable  # PEFT has no such method for these
    decoder: nn.Module = policy.decoder
    decoder.register_forward_pre_hook(policy.virtual.before, with_kwargs=True)
    decoder.register_forward_hook(policy.virtual.after)
    policy.remeasure()


def _longer(mask: Tensor | None, rows: int, length: int) -> Tensor | None:
    """A mask (B, T) with as many tokens before it as it lacks."""
    if mask is None:
        return None
    if mask.dim() != 2:
        raise WhetError("virtual tokens need a mask of two dimensions")
    return torch.cat([mask.new_ones(rows, length - mask.shape[1]), mask], 1)


def _unmergeable() -> NoReturn:
    raise WhetError(
        "virtual tokens are no change of the weights and cannot be merged: go on with the adapters, or begin at their base"
    )
