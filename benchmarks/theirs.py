"""TRL's side of each cell: its trainers as they are, on the CPU, with the settings of the sweep."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import workload


def load(model: Path, dtype: str = "float32") -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    return loaded, AutoTokenizer.from_pretrained(model)


def dataset(cell: str, file: Path) -> Any:
    """The same rows as Whet's; its plain style puts a line break behind a prompt."""
    from datasets import Dataset

    rows = [{**r, "prompt": r["prompt"] + "\n"} for r in workload.rows_of(file)]
    if cell == "sft":
        rows = [{"prompt": r["prompt"], "completion": r["answer"]} for r in rows]
    elif cell.startswith("grpo"):
        rows = [{"prompt": r["prompt"]} for r in rows]
    return Dataset.from_list(rows)


def timed(trainer_class: Any) -> Any:
    """The trainer, noting when each optimizer step ended and how many tokens entered the loss until then."""
    from transformers import TrainerCallback

    class Ends(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[tuple[float, int]] = []
            self.tokens = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ends.append((time.perf_counter(), self.tokens))

    class Timed(trainer_class):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.clock = Ends()
            super().__init__(*args, callbacks=[self.clock], **kwargs)

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(inputs, Mapping) and "labels" in inputs:
                self.clock.tokens += int((inputs["labels"] != -100).sum())
            elif isinstance(inputs, Mapping) and "completion_mask" in inputs:
                self.clock.tokens += int(inputs["completion_mask"].sum())
            return super().training_step(model, inputs, *args, **kwargs)

    return Timed


def common(steps: int, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(prefix="trl-"), "max_steps": steps, "learning_rate": workload.LEARNING_RATE,
        "bf16": settings.get("bf16", False), "gradient_checkpointing": settings.get("gradient_checkpointing", False),
        "dataloader_num_workers": settings.get("workers", 0), "report_to": "none", "save_strategy": "no",
        "use_cpu": True, "disable_tqdm": True, "seed": seed, "adam_beta2": 0.95,
    }  # fmt: skip


def trainer(
    cell: str, model: Path, file: Path, settings: Mapping[str, Any], *, steps: int, seed: int = 0, group: int = 8,
    batch: int = 0, new_tokens: int = 64,
) -> Any:  # fmt: skip
    import trl

    warnings.filterwarnings("ignore")
    loaded, tokenizer = load(model)
    given, rows = common(steps, settings, seed), dataset(cell, file)
    if cell == "sft":
        size = batch or 32
        packing = {}
        micro = min(settings.get("micro", size), size)
        if settings.get("packing"):
            # a packed row is 256 tokens; as many of them as hold about the tokens of 32 demonstrations
            packing = {"packing": True, "max_length": 256}
            micro = max(1, min(micro, size // 4))
            size = micro
        given |= {"train_sampling_strategy": settings.get("sampler", "random"), "per_device_train_batch_size": micro}
        args = trl.SFTConfig(**{"max_length": 1024, **given, **packing}, gradient_accumulation_steps=size // micro)
        return timed(trl.SFTTrainer)(model=loaded, args=args, train_dataset=rows, processing_class=tokenizer)
    if cell == "dpo":
        size = batch or 16
        micro = min(settings.get("micro", size), size)
        args = trl.DPOConfig(
            **given, per_device_train_batch_size=micro, gradient_accumulation_steps=size // micro, max_length=1024,
            padding_free=settings.get("padding_free", False),
        )  # fmt: skip
        return timed(trl.DPOTrainer)(model=loaded, args=args, train_dataset=rows, processing_class=tokenizer)
    size = (batch or 8) * group
    micro = min(settings.get("micro", size), size)
    args = trl.GRPOConfig(
        **given, per_device_train_batch_size=micro, gradient_accumulation_steps=size // micro, num_generations=group,
        max_completion_length=new_tokens, temperature=1.0, beta=0.0, loss_type="grpo",
        use_transformers_continuous_batching=settings.get("continuous", False),
    )  # fmt: skip
    return timed(trl.GRPOTrainer)(
        model=loaded, args=args, train_dataset=rows, processing_class=tokenizer, reward_funcs=workload.letters
    )


def train(
    cell: str,
    model: Path,
    file: Path,
    settings: Mapping[str, Any],
    *,
    warm: int,
    steps: int,
    seed: int = 0,
    **shape: Any,
) -> dict[str, Any]:
    """Train for some steps and time those after the warm-up."""
    made = trainer(cell, model, file, settings, steps=warm + steps, seed=seed, **shape)
    made.train()
    ends = made.clock.ends
    seconds = ends[-1][0] - ends[warm - 1][0]
    tokens = ends[-1][1] - ends[warm - 1][1]
    found = {"seconds": seconds, "steps": steps, "steps/s": steps / seconds}
    if tokens:  # a GRPO step makes its own
        found |= {"tokens/s": tokens / seconds, "learnt_tokens": tokens}
    lengths = [row["completions/mean_length"] for row in made.state.log_history if "completions/mean_length" in row]
    if lengths:
        found["answer_tokens"] = sum(lengths) / len(lengths)
    return found


def sample(
    model: Path, file: Path, settings: Mapping[str, Any], *, new_tokens: int, seed: int = 0, warm: int = 8
) -> dict[str, Any]:
    """Answer every prompt once, longest prompts first, in batches."""
    import torch
    from transformers import GenerationConfig

    dtype = settings["dtype"]
    loaded, tokenizer = load(model, "float32" if dtype == "mixed" else dtype)
    loaded.eval()
    rows = workload.rows_of(file)
    prompts = sorted((tokenizer(r["prompt"] + "\n")["input_ids"] for r in rows), key=len, reverse=True)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id

    def generate(ids: list[list[int]], most: int) -> list[int]:
        config = GenerationConfig(
            do_sample=True, max_new_tokens=most, top_k=0, top_p=1.0, temperature=1.0, eos_token_id=eos, pad_token_id=pad
        )
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "mixed"):
            if settings["engine"] == "generate_batch":
                out = loaded.generate_batch(inputs=ids, generation_config=config, progress_bar=False)
                return [len(o.generated_tokens) for o in out.values()]
            width = max(map(len, ids))
            given = torch.tensor([[pad] * (width - len(i)) + i for i in ids])
            mask = torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i in ids])
            out = loaded.generate(given, attention_mask=mask, generation_config=config)[:, width:].tolist()
            return [o.index(eos) + 1 if eos in o else len(o) for o in out]

    torch.manual_seed(seed)
    generate(prompts[:warm], 8)
    size = len(prompts) if settings["engine"] == "generate_batch" else settings["batch_size"]
    began = time.perf_counter()
    lengths = [n for i in range(0, len(prompts), size) for n in generate(prompts[i : i + size], new_tokens)]
    seconds = time.perf_counter() - began
    if len(lengths) != len(prompts):
        raise RuntimeError(f"{len(prompts)} prompts and {len(lengths)} answers")
    return {"seconds": seconds, "tokens/s": sum(lengths) / seconds, "answer_tokens": sum(lengths) / len(lengths),
            "longest": max(lengths)}  # fmt: skip
