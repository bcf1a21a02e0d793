"""Layers: the weights of a dense decoder, read from its Hugging Face module for one cached token at a time.

A Hugging Face forward spends most of a small model's decoding step outside its matrix products. Here a block is a handful
of calls: one product for queries, keys and values, one for gate and up, fused norms, rotations from a table. Only model
types whose every option is covered are read; for the others, and for modules that something was attached to (hooks,
parametrizations, adapters other than plain LoRA), `read` says why not, and the Hugging Face module itself is run instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from whet.models.policy import Policy

LLAMA_LIKE = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3")
SUPPORTED = (*LLAMA_LIKE, "gpt2", "gpt_neox")
STATIC_ROPE = ("default", "linear", "llama3", "yarn")  # the others change with the sequence's length
COPIED = 1 << 29  # bytes of weights that may be copied for fused projections; larger models keep theirs apart


class Unreadable(Exception):
    """Why a module's weights cannot be read."""


class Linear:
    """One product for several projections of the same input.

    Args:
        parts: (weight (out, in), bias (out,) or None) of each.
        dtype: of the product.
        fuse: copy them into one matrix; otherwise they are multiplied one after the other.
    """

    def __init__(self, parts: Sequence[tuple[Tensor, Tensor | None]], dtype: torch.dtype, fuse: bool) -> None:
        if fuse and len(parts) > 1:
            weight = torch.cat([w.to(dtype) for w, _ in parts])
            biases = [w.new_zeros(len(w)) if b is None else b for w, b in parts]
            parts = [(weight, torch.cat(biases) if any(b is not None for _, b in parts) else None)]
        self.parts = [(w.to(dtype), None if b is None else b.to(dtype)) for w, b in parts]
        self.dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        out = [F.linear(x, w, b) for w, b in self.parts]
        return out[0] if len(out) == 1 else torch.cat(out, -1)


@dataclass
class Norm:
    """Root-mean-square norm, or layer norm where `rms` is False."""

    weight: Tensor
    bias: Tensor | None
    eps: float
    rms: bool

    def __call__(self, x: Tensor) -> Tensor:
        if self.rms:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass
class Block:
    """One layer.

    Attributes:
        qkv: queries of all heads, then keys, then values.
        head_norm: ((heads + key heads, D) weights, eps) of the norm of each query and key head.
        post_attention, post_mlp: norms of what is added to the residual stream (Gemma).
        parallel: attention and MLP read the same input (GPT-NeoX).
        window: positions that a token sees, itself included; 0 is all.
        rope: which table its rotations are in.
    """

    before: Norm
    qkv: Linear
    out: Linear
    middle: Norm
    up: Linear
    act: Callable[[Tensor], Tensor]
    down: Linear
    gated: bool
    scale: float
    window: int = 0
    rope: str = ""
    softcap: float | None = None
    head_norm: tuple[Tensor, float] | None = None
    post_attention: Norm | None = None
    post_mlp: Norm | None = None
    parallel: bool = False

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual stream after the block, from what its attention gathered."""
        added = self.out(attended)
        if self.post_attention is not None:
            added = self.post_attention(added)
        after = x + added
        inner = self.up(self.middle(x if self.parallel else after))
        if self.gated:
            gate, up = inner.chunk(2, -1)
            inner = self.act(gate) * up
        else:
            inner = self.act(inner)
        added = self.down(inner)
        return after + (self.post_mlp(added) if self.post_mlp is not None else added)


@dataclass
class Layers:
    """A decoder.

    Attributes:
        embed: token ids -> residual stream.
        learnt_positions: (positions, H) added to it, or None.
        tables: for each kind of rotation, positions n -> cos and signed sin, (n, D) each.
        dtype: of keys and values.
    """

    embed: Callable[[Tensor], Tensor]
    learnt_positions: Tensor | None
    tables: dict[str, Callable[[int], tuple[Tensor, Tensor]]]
    blocks: list[Block]
    norm: Norm
    head: Linear
    softcap: float | None
    heads: int
    kv_heads: int
    head_size: int
    dtype: torch.dtype

    def logits(self, x: Tensor) -> Tensor:
        logits = self.head(self.norm(x))
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits


def read(policy: Policy, dtype: torch.dtype | None = None) -> Layers:
    """The layers of a policy's model, as they are now.

    Args:
        dtype: of products, keys and values; None is that of the policy's own forward.

    Raises:
        Unreadable: it must be run by its own module.
    """
    config = policy.model.config
    kind = config.model_type
    if kind not in SUPPORTED:
        raise Unreadable(f"model type '{kind}' is not one of {', '.join(SUPPORTED)}")
    if not policy.chunked:
        raise Unreadable("its head cannot be applied to the last hidden state alone")
    if not all(p.is_floating_point() for p in policy.model.parameters()):
        raise Unreadable("its weights are quantized")
    for name, module in policy.model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise Unreadable(f"a hook is attached to '{name or kind}'")
    dtype = dtype or (torch.bfloat16 if policy.mixed else policy.dtype)
    fuse = sum(p.numel() for p in policy.model.parameters()) * dtype.itemsize <= COPIED
    reader = _Reader(policy, dtype, fuse)
    blocks, norm, embed, positions = {"gpt2": _gpt2, "gpt_neox": _neox}.get(kind, _llama)(reader)
    heads = config.num_attention_heads
    head = reader.linear(policy.model.get_output_embeddings())
    return Layers(
        embed, positions, reader.tables(), blocks, norm, head, policy._softcap, heads,
        getattr(config, "num_key_value_heads", None) or heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads, dtype,
    )  # fmt: skip


class _Reader:
    def __init__(self, policy: Policy, dtype: torch.dtype, fuse: bool) -> None:
        self.policy, self.config = policy, policy.model.config
        self.decoder: Any = policy.decoder
        self.dtype, self.fuse = dtype, fuse
        self.gemma = self.config.model_type.startswith("gemma")

    def linear(self, *modules: Any) -> Linear:
        return Linear([dense(m) for m in modules], self.dtype, self.fuse)

    def norm(self, module: Any) -> Norm:
        module = _active(module)
        if isinstance(module, nn.LayerNorm):
            return Norm(module.weight, module.bias, module.eps, rms=False)
        weight = module.weight.float() + 1.0 if self.gemma else module.weight
        eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
        return Norm(weight.to(module.weight.dtype), None, eps, rms=True)

    def tables(self) -> dict[str, Callable[[int], tuple[Tensor, Tensor]]]:
        rotary = getattr(self.decoder, "rotary_emb", None)
        if rotary is None:
            return {}
        names = sorted(set(self.config.layer_types)) if self.config.model_type == "gemma3_text" else [""]
        settings = self.config.rope_parameters
        for name in names:
            found = (settings.get(name) or settings if name else settings).get("rope_type", "default")
            if found not in STATIC_ROPE:
                raise Unreadable(f"its rotary embedding is of type '{found}'")

        def table(name: str, positions: int) -> tuple[Tensor, Tensor]:
            like = torch.empty(0, dtype=self.policy.dtype, device=self.policy.device)
            places = torch.arange(positions, device=self.policy.device)[None]
            cos, sin = rotary(like, places, name) if name else rotary(like, places)
            half = sin.shape[-1] // 2
            return cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)

        return {name: lambda n, name=name: table(name, n) for name in names}


def dense(module: Any) -> tuple[Tensor, Tensor | None]:
    """(weight (out, in), bias) of a linear layer; a LoRA layer's is the sum of its base and its active adapters, and that of
    another adapter of PEFT what it merges into."""
    if type(module) is nn.Linear:
        return module.weight, module.bias
    if type(module) is Conv1D:
        return module.weight.T, module.bias
    try:
        from peft.tuners.lora.layer import Linear as LoraLinear
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        raise Unreadable(f"a projection is a {type(module).__name__}") from None
    if not isinstance(module, BaseTunerLayer):
        raise Unreadable(f"a projection is a {type(module).__name__}")
    if module.disable_adapters or module.merged:
        return dense(module.get_base_layer())
    own = [name for name in module.active_adapters if name in getattr(module, "lora_A", {})]
    if type(module) is not LoraLinear or any(_is_variant(module, name) for name in own):
        with torch.no_grad():
            copied = copy.deepcopy(module)
            copied.merge()
        return dense(copied.get_base_layer())
    weight, bias = dense(module.get_base_layer())
    for name in own:
        delta = module.get_delta_weight(name)
        weight = weight + (delta.T if module.fan_in_fan_out else delta)  # of the base's own layout
    return weight, bias


def _is_variant(module: Any, name: str) -> bool:
    """Whether a LoRA adapter is more than a low-rank difference: DoRA, say."""
    return module.use_dora.get(name) or module.lora_bias.get(name) or name in getattr(module, "lora_variant", {})


def _active(module: Any) -> Any:
    """The module that runs where PEFT keeps two, the base's and one that is trained whole."""
    trained = getattr(module, "modules_to_save", None)
    if trained is None or not hasattr(module, "original_module"):
        return module
    idle = module.disable_adapters or not module.active_adapters
    return module.original_module if idle else trained[module.active_adapters[0]]


def _llama(r: _Reader) -> tuple[list[Block], Norm, Callable[[Tensor], Tensor], Tensor | None]:
    kind = r.config.model_type
    types = getattr(r.config, "layer_types", None)
    blocks = []
    for i, layer in enumerate(r.decoder.layers):
        attention, mlp = layer.self_attn, layer.mlp
        fused = hasattr(attention, "qkv_proj")
        window = getattr(r.config, "sliding_window", None) or 0
        if kind not in ("mistral", "phi3"):
            window = window if types and types[i] == "sliding_attention" else 0
        head_norm = None
        if hasattr(attention, "q_norm"):
            q, k = r.norm(attention.q_norm), r.norm(attention.k_norm)
            heads, kv = r.config.num_attention_heads, r.config.num_key_value_heads
            head_norm = torch.cat([q.weight.expand(heads, -1), k.weight.expand(kv, -1)]), q.eps
        sandwich = r.gemma
        blocks.append(Block(
            before=r.norm(layer.input_layernorm),
            qkv=r.linear(attention.qkv_proj) if fused else r.linear(attention.q_proj, attention.k_proj, attention.v_proj),
            out=r.linear(attention.o_proj),
            middle=r.norm(layer.pre_feedforward_layernorm if sandwich else layer.post_attention_layernorm),
            up=r.linear(mlp.gate_up_proj) if hasattr(mlp, "gate_up_proj") else r.linear(mlp.gate_proj, mlp.up_proj),
            act=mlp.activation_fn if hasattr(mlp, "activation_fn") else mlp.act_fn,
            down=r.linear(mlp.down_proj), gated=True, scale=attention.scaling, window=window,
            rope=types[i] if kind == "gemma3_text" and types else "",
            softcap=attention.attn_logit_softcapping if kind == "gemma2" else None, head_norm=head_norm,
            post_attention=r.norm(layer.post_attention_layernorm) if sandwich else None,
            post_mlp=r.norm(layer.post_feedforward_layernorm) if sandwich else None,
        ))  # fmt: skip
    return blocks, r.norm(r.decoder.norm), r.decoder.embed_tokens, None


def _gpt2(r: _Reader) -> tuple[list[Block], Norm, Callable[[Tensor], Tensor], Tensor | None]:
    blocks = [
        Block(
            before=r.norm(layer.ln_1), qkv=r.linear(layer.attn.c_attn), out=r.linear(layer.attn.c_proj),
            middle=r.norm(layer.ln_2), up=r.linear(layer.mlp.c_fc), act=layer.mlp.act, down=r.linear(layer.mlp.c_proj),
            gated=False, scale=layer.attn.scaling,
        )
        for layer in r.decoder.h
    ]  # fmt: skip
    return blocks, r.norm(r.decoder.ln_f), r.decoder.wte, r.decoder.wpe.weight


def _neox(r: _Reader) -> tuple[list[Block], Norm, Callable[[Tensor], Tensor], Tensor | None]:
    heads = r.config.num_attention_heads

    def apart(module: Any) -> Linear:
        """Its rows are (head, query | key | value, D); ours are (query | key | value, head, D)."""
        weight, bias = dense(module)
        size = len(weight) // (3 * heads)
        turned = weight.view(heads, 3, size, -1).transpose(0, 1).reshape(weight.shape)
        bias = None if bias is None else bias.view(heads, 3, size).transpose(0, 1).reshape(-1)
        return Linear([(turned, bias)], r.dtype, fuse=True)

    blocks = [
        Block(
            before=r.norm(layer.input_layernorm), qkv=apart(layer.attention.query_key_value),
            out=r.linear(layer.attention.dense), middle=r.norm(layer.post_attention_layernorm),
            up=r.linear(layer.mlp.dense_h_to_4h), act=layer.mlp.act, down=r.linear(layer.mlp.dense_4h_to_h),
            gated=False, scale=layer.attention.scaling, parallel=layer.use_parallel_residual,
        )
        for layer in r.decoder.layers
    ]  # fmt: skip
    return blocks, r.norm(r.decoder.final_layer_norm), r.decoder.embed_in, None
