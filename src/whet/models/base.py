"""Load a policy: a shipped base, a local Hugging Face folder, a PEFT folder, or a Hub name; or create a new base."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from whet.errors import WhetError, first_line
from whet.models import trust
from whet.models.bottleneck import KIND, Bottlenecks
from whet.models.policy import Policy
from whet.models.quantized import nf4
from whet.models.virtual import install

log = logging.getLogger("whet")

SHIPPED = {
    "base": "2.6 M parameters, eleven tasks: what a run starts from where no model is named",
    "micro": "0.5 M parameters, arithmetic, stories and lists: for studies that need many arms",
}
PROMPTS = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING")
# what Transformers, PEFT and torch raise for a folder that is damaged or is none
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    SafetensorError,
    UnpicklingError,
)
_FOLDER = Path(__file__).parent / "shipped"

CONTROL = ["<pad>", "<bos>", "<eos>", "<mask>", "<user>", "<assistant>", "<system>"]
# Tags have their own tokens from the start, so that no later method needs new embedding rows.
SPECIAL = [
    *CONTROL,
    "<think>", "</think>", "<plan>", "</plan>", "<execute>", "</execute>", "<answer>", "</answer>",
    "<tool>", "</tool>", "<thought>", "</thought>", "<critique>", "</critique>",
    "<thought-start>", "<thought-end>", *(f"<spare-{i}>" for i in range(8)),
]  # fmt: skip

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def shipped(name: str = "base") -> Path:
    """The folder of a base that ships with the package."""
    return _FOLDER / name


def resolve(model: str | Path | None) -> str:
    """The folder or Hub name that a model argument stands for: a name in `SHIPPED` is that base, None is "base", and a
    run's folder is the model that the run ended with."""
    if model is None or str(model) in SHIPPED:
        return str(shipped(str(model or "base")))
    folder = Path(model)
    try:
        ran = (folder / "run.yaml").exists() and not (folder / "config.json").exists()
    except OSError as problem:  # a path that is too long, a folder that may not be read
        raise WhetError(f"model '{str(model)[:60]}' cannot be looked for: {problem.strerror}") from None
    if ran:
        if not (folder / "model").exists():
            raise WhetError(f"the run in '{model}' has no model yet: go on with it by `whet run --resume {model}`")
        return str(folder / "model")
    return str(model)


def load(
    model: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "float32",
    style: Any = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    quantize: str = "none",
) -> Policy:
    """Load a policy.

    Args:
        model: a name in `SHIPPED` (None is "base"), a local folder (Hugging Face or PEFT), or a Hub name.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        dtype: `float32`, `float64`, `bfloat16`, or `mixed` (fp32 weights, bf16 autocast).
        allow_pickle: take pickled weights where there are none in safetensors; they are read as tensors only.
        trust_remote_code: let the model's own code run.
        quantize: `nf4` holds its linear layers in 4 bits; see `whet.models.quantized`.

    Raises:
        WhetError: the folder is not a model, brings what it may not (`whet.models.trust`), or the device is not there.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    source = resolve(model)
    folder = Path(source)
    adapter = folder / "adapter_config.json"
    if folder.exists() and not (folder / "config.json").exists() and not adapter.exists():
        raise WhetError(f"'{source}' is not a model folder: it has neither config.json nor adapter_config.json")
    if not folder.exists() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise WhetError(f"model '{source}': no such folder, and not a Hub name of the form ORG/NAME; "
                        f"shipped are {', '.join(SHIPPED)}")  # fmt: skip
    where = pick_device(device)
    kind = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "mixed": torch.float32}
    if dtype not in kind:
        raise WhetError(f"dtype '{dtype}': one of {', '.join(kind)}")
    try:
        base = resolve(trust.adapter_base(adapter)) if adapter.exists() else source
        for place in dict.fromkeys((source, base)):
            trust.check(place, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    except WhetError as problem:
        raise WhetError(f"model '{source}' could not be loaded: {problem}") from None
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    held: dict[str, Any] = {}
    if quantize != "none":
        compute = torch.bfloat16 if dtype == "mixed" else kind[dtype]
        held = {"quantization_config": nf4(compute), "device_map": {"": where}}
    adapted: Any = None
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype=kind[dtype], use_safetensors=None if allow_pickle else True, **options, **held
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if adapter.exists():
            adapted = _adapted(loaded, source, json.loads(adapter.read_text()).get("peft_type"))
    except UNREADABLE as problem:
        raise WhetError(f"model '{source}' could not be loaded: {first_line(problem)}") from problem
    _check_tokenizer(tokenizer, loaded, source)
    if not held:
        loaded.to(where)
    no_dropout(loaded)
    kept = _note(folder / "whet.json")
    policy = Policy(loaded, tokenizer, name=source, style=style or kept.get("style"), fallback=kept.get("fallback"),
                    mixed=dtype == "mixed")  # fmt: skip
    policy.format.condition = kept.get("condition", "")
    policy.peft = adapted
    if adapted is not None and adapted.peft_config[adapted.active_adapter].is_prompt_learning:
        install(policy, adapted)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        log.info("the tokenizer's pad is its end token; padding is masked by length here, so the end is still learnt")
    return policy


def _adapted(model: Any, folder: str, kind: str | None) -> Any:
    """The adapters of a folder, put into their base."""
    if kind == KIND:
        return Bottlenecks.load(model, folder)
    from peft import PeftModel

    prompts = kind in PROMPTS
    made = PeftModel.from_pretrained(model, folder, is_trainable=not prompts)
    config: Any = made.active_peft_config
    if prompts and kind != "P_TUNING" and not getattr(config, "prefix_projection", False):
        config.inference_mode = (
            False  # PEFT loads no prompt to be trained on; but where nothing made it, it is all there is
        )
        made.prompt_encoder.requires_grad_(True)
    return made


def create(tokenizer: Any, *, hidden: int, layers: int, heads: int, kv_heads: int, inner: int, seed: int = 0,
           context: int = 1024) -> Policy:  # fmt: skip
    """A new, untrained Qwen3 decoder with tied embeddings, for `pretrain`."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=hidden // heads, intermediate_size=inner, tie_word_embeddings=True,
        max_position_embeddings=context, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    return Policy(Qwen3ForCausalLM(config), tokenizer, name="new")


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer with single digits, the tags of `Format` and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", core.token_to_id("<bos>"))]
    )
    # tags are part of an answer's text: tools that skip special tokens when they decode must keep them
    written = json.loads(core.to_str())
    for token in written["added_tokens"]:
        token["special"] = token["content"] in CONTROL
    core = Tokenizer.from_str(json.dumps(written))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", mask_token="<mask>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def pick_device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError) as problem:
        raise WhetError(f"device '{device}' cannot be used: {first_line(problem)}") from problem
    return found


def no_dropout(model: nn.Module) -> None:
    """Ratios compare two forwards of one policy: dropout would make them differ, so it is off everywhere."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "attn_pdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def weights_hash(model: nn.Module) -> str:
    """A short hash of all weights as they are in memory."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_tokenizer(tokenizer: Any, model: Any, source: str) -> None:
    """Transformers makes an empty tokenizer for a folder that holds none, and takes one that is not the model's."""
    if set(tokenizer.encode("a 1", add_special_tokens=False)) <= set(tokenizer.all_special_ids):
        raise WhetError(f"model '{source}' could not be loaded: its folder holds no tokenizer; save the model's there")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise WhetError(f"model '{source}' could not be loaded: its tokenizer has {len(tokenizer)} tokens and the model "
                        f"{rows}; save the model's own tokenizer there")  # fmt: skip


def _note(file: Path) -> dict[str, Any]:
    """What a model folder says of its format."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError as problem:
        raise WhetError(f"'{file}' is not JSON ({first_line(problem)}); restore it, or remove it and the format is "
                        "chosen by the tokenizer") from None  # fmt: skip
    allowed = {"style": (None, "tags", "chat", "plain"), "fallback": (None, "raw", "missing")}
    if not isinstance(kept, dict):
        raise WhetError(f"'{file}' holds no object; restore it, or remove it and the format is chosen by the tokenizer")
    for name, values in allowed.items():
        if kept.get(name) not in values:
            raise WhetError(f"'{file}': '{name}' is one of {', '.join(filter(None, values))}, not {kept[name]!r}")
    if not isinstance(kept.get("condition", ""), str):
        raise WhetError(f"'{file}': 'condition' is a text, not {kept['condition']!r}")
    return kept
