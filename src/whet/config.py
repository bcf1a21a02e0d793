"""RunConfig: everything a run was asked to do, as it stands in `run.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from whet.errors import WhetError, unknown


class RunConfig(BaseModel):
    """The arguments of `whet run`. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    recipe: str = Field(description="which method; see `whet recipes`")
    arguments: dict[str, Any] = Field(default_factory=dict, description="the recipe's own arguments")
    model: str | None = Field(None, description="base, micro, a folder or Hub name; none is base")
    task: str = Field(
        "chain-sum", description="a task's name, a JSONL file, or hub:ORG/NAME; else the recipe's own, mostly"
    )
    verifier: str | None = Field(
        None, description="of a file task: exact, normalized, number, math, choice, regex:..., FILE.py:FUNCTION"
    )
    validation: str | None = Field(None, description="a file task's validation file; else 10 % by hash of the prompt")
    test: str | None = Field(None, description="a file task's test file; else 10 % by hash of the prompt")
    weights: str = Field(
        "full", description="which weights move: full, lora, lift, hft:share=0.5 ...; see `whet weights`"
    )
    seed: int = Field(0, description="root of all randomness")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: str = Field("float32", description="float32, bfloat16, float64, or mixed (fp32 weights, bf16 forwards)")
    sampler: str = Field(
        "auto", description="who samples: auto, native, huggingface, or a vLLM server, vllm:http://HOST:PORT/v1"
    )
    allow_pickle: bool = Field(
        False, description="take pickled weights where a model has no safetensors; as tensors only"
    )
    trust_remote_code: bool = Field(False, description="let code that comes with the model run")
    shard: bool = Field(False, description="cut parameters, gradients and moments among the ranks (FSDP2)")
    optimizer: str = Field(
        "adamw", pattern="^(adamw|adamw8bit)$", description="adamw, or adamw8bit: moments of 8 bits (bitsandbytes)"
    )
    quantize: str = Field(
        "none", pattern="^(none|nf4)$", description="nf4 holds the model in 4 bits under adapters: QLoRA (bitsandbytes)"
    )
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward to save memory")
    threads: int = Field(0, ge=0, description="CPU threads; 0 takes the cores there are, at most 8")
    token_budget: int = Field(
        0, ge=0, description="tokens run at once in a micro-batch; 0: by device; changes memory, not the gradient"
    )
    budget: str | None = Field(
        None, description="ends the run instead of steps: flops:2e13, tokens:1e6, steps:100, minutes:5"
    )
    eval_every: int = Field(25, ge=0, description="steps between evaluations on validation; 0 is never")
    evaluations: int = Field(0, ge=0, description="so many evaluations at equal shares of the run instead")
    patience: int = Field(0, ge=0, description="evaluations without a new best before stopping; 0 is never")
    save_every: int = Field(50, ge=0, description="steps between checkpoints; 0 only at the end")
    keep: str = Field(
        "best", pattern="^(best|last)$",
        description="end with the best weights on validation (the latest within one standard error), or the last",
    )  # fmt: skip
    on_nonfinite: str = Field(
        "stop",
        pattern="^(stop|skip)$",
        description="a batch whose loss is nan or infinite ends the run (stop), or is left out (skip: 10 at most)",
    )
    track: str | None = Field(None, description="send the numbers to tensorboard, wandb, trackio or mlflow too")
    test_n: int = Field(512, ge=1, description="test problems before and after")
    k: int = Field(16, ge=0, description="sampled answers to each test problem (pass@k); 0 leaves them out")
    validation_n: int = Field(128, ge=1, description="validation problems at each evaluation")
    others: list[str] | None = Field(
        None, description="tasks, or a suite of them, whose accuracy shows what is forgotten; none: forgetting/1"
    )
    others_n: int = Field(256, ge=1, description="test problems of each of them")
    others_look_n: int = Field(0, ge=0, description="the same at each evaluation during training; 0 leaves them out")
    probes: list[str] | None = Field(
        None,
        description="numbers besides accuracy, at each look and at the end: drift, confident-wrong, sampled-drift, geometry, spliced",
    )

    @classmethod
    def make(cls, values: dict[str, Any]) -> RunConfig:
        """Validate; a WhetError names the first bad key."""
        for key in values:
            if key not in cls.model_fields:
                raise unknown("setting", str(key), cls.model_fields)
        try:
            return cls(**values)
        except ValidationError as problem:
            first = problem.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise WhetError(f"setting '{where}': {first['msg'].lower()} (given: {first.get('input')!r})") from None

    @classmethod
    def read(cls, path: Path) -> tuple[RunConfig, dict[str, Any]]:
        """The config of a `run.yaml`, and the record (versions, hashes) that the run left in it."""
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as problem:
            at = f":{problem.problem_mark.line + 1}" if problem.problem_mark else ""
            raise WhetError(f"'{path}{at}' cannot be read: {problem.problem}; mend the YAML") from None
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as problem:  # yaml makes dates and numbers itself
            raise WhetError(f"'{path}' cannot be read: {str(problem).splitlines()[0]}; mend the YAML") from None
        if not isinstance(values, dict) or "recipe" not in values:
            raise WhetError(f"'{path}' is not a run.yaml: it names no recipe")
        record = values.pop("record", {})
        if not isinstance(record, dict):
            raise WhetError(f"'{path}': 'record' is what the run noted of itself, not {record!r}; remove the line")
        return cls.make(values), record

    def dump(self, record: dict[str, Any]) -> str:
        """The text of a `run.yaml`."""
        values = {k: v for k, v in self.model_dump().items() if v is not None}
        asked = {**values, "arguments": self.arguments, "record": record}  # as given: pydantic takes objects apart
        try:
            return yaml.safe_dump(asked, sort_keys=False, allow_unicode=True)
        except yaml.representer.RepresenterError as problem:
            raise WhetError(f"a run with an output folder must be described by plain values, so that it can be run "
                            f"again: {problem.args[-1]!r} is none; register a recipe that makes it") from None  # fmt: skip
