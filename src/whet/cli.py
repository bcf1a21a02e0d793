"""The command `whet`. Thin: it reads the command line; `whet.terminal` does the work and is imported when it is needed,
so that `whet --help` answers at once.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from whet import __version__
from whet.errors import WhetError
from whet.terminal.compare import add_commands as add_compare_commands
from whet.terminal.runs import add_commands as add_run_commands
from whet.terminal.weights import add_commands as add_weights_commands

TRAIN, LOOK, LIST, MAKE = "Train and use", "Look before you train", "What there is", "Make"
METHOD, RUN, EVALUATION, MACHINE = "What is learnt", "The run", "Evaluation", "The machine"

app = typer.Typer(
    name="whet", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune language models so that they reason better, and know which method did it.",
    epilog="Start with: whet run grpo --out runs/first",
)  # fmt: skip
tasks_app = typer.Typer(invoke_without_command=True, help="The tasks; `whet tasks show NAME` looks into one.")
base_app = typer.Typer(no_args_is_help=True, help="The bases that ship with the package.")
app.add_typer(tasks_app, name="tasks", rich_help_panel=LIST)
app.add_typer(base_app, name="base", rich_help_panel=MAKE)

Setting = tuple[Any, str, str, object]

# the settings of a run (`whet.config.RunConfig`): type, panel, help, default. They stand here again because pydantic
# would make `whet --help` slow; a test holds them equal.
SETTINGS: dict[str, Setting] = {
    "model": (str, METHOD, "base, micro, a folder or Hub name; none is base", None),
    "task": (str, METHOD, "a task's name, a JSONL file, or hub:ORG/NAME; else the recipe's own, mostly", "chain-sum"),
    "verifier": (str, METHOD, "of a file task: exact, normalized, number, math, choice, regex:..., FILE.py:FUNCTION", None),
    "validation": (str, METHOD, "a file task's validation file; else 10 % by hash of the prompt", None),
    "test": (str, METHOD, "a file task's test file; else 10 % by hash of the prompt", None),
    "weights": (str, METHOD, "which weights move: full, lora, lift, hft:share=0.5 ...; see `whet weights`", "full"),
    "seed": (int, METHOD, "root of all randomness", 0),
    "track": (str, RUN, "send the numbers to tensorboard, wandb, trackio or mlflow too", None),
    "budget": (str, RUN, "ends the run instead of steps: flops:2e13, tokens:1e6, steps:100, minutes:5", None),
    "patience": (int, RUN, "evaluations without a new best before stopping; 0 is never", 0),
    "keep": (
        str, RUN, "end with the best weights on validation (the latest within one standard error), or the last", "best"
    ),
    "on_nonfinite": (str, RUN, "a batch whose loss is nan or infinite ends the run (stop), or is left out (skip: 10 at most)", "stop"),
    "save_every": (int, RUN, "steps between checkpoints; 0 only at the end", 50),
    "eval_every": (int, EVALUATION, "steps between evaluations on validation; 0 is never", 25),
    "evaluations": (int, EVALUATION, "so many evaluations at equal shares of the run instead", 0),
    "validation_n": (int, EVALUATION, "validation problems at each evaluation", 128),
    "test_n": (int, EVALUATION, "test problems before and after", 512),
    "k": (int, EVALUATION, "sampled answers to each test problem (pass@k); 0 leaves them out", 16),
    "others": (list[str], EVALUATION, "tasks, or a suite of them, whose accuracy shows what is forgotten; none: forgetting/1", None),
    "others_n": (int, EVALUATION, "test problems of each of them", 256),
    "others_look_n": (int, EVALUATION, "the same at each evaluation during training; 0 leaves them out", 0),
    "probes": (list[str], EVALUATION, "numbers besides accuracy, at each look and at the end: drift, confident-wrong, sampled-drift, geometry, spliced", None),
    "device": (str, MACHINE, "auto, cpu, cuda, cuda:1, mps", "auto"),
    "dtype": (str, MACHINE, "float32, bfloat16, float64, or mixed (fp32 weights, bf16 forwards)", "float32"),
    "sampler": (str, MACHINE, "who samples: auto, native, huggingface, or a vLLM server, vllm:http://HOST:PORT/v1", "auto"),
    "allow_pickle": (bool, METHOD, "take pickled weights where a model has no safetensors; as tensors only", False),
    "trust_remote_code": (bool, METHOD, "let code that comes with the model run", False),
    "shard": (bool, MACHINE, "cut parameters, gradients and moments among the ranks (FSDP2)", False),
    "optimizer": (str, MACHINE, "adamw, or adamw8bit: moments of 8 bits (bitsandbytes)", "adamw"),
    "quantize": (str, MACHINE, "nf4 holds the model in 4 bits under adapters: QLoRA (bitsandbytes)", "none"),
    "activation_checkpointing": (bool, MACHINE, "recompute activations in the backward to save memory", False),
    "threads": (int, MACHINE, "CPU threads; 0 takes the cores there are, at most 8", 0),
    "token_budget": (int, MACHINE, "tokens run at once in a micro-batch; 0: by device; changes memory, not the gradient", 0),
}  # fmt: skip


def takes_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Offer each of `SETTINGS` as an option that the function gets by name, None where it was not given."""
    own = inspect.signature(function, eval_str=True)
    kept = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = []
    for name, (kind, panel, text, default) in SETTINGS.items():
        shown = "" if default is None or default is False else f" [dim]({default})[/]"
        option = typer.Option(
            f"--{name.replace('_', '-')}", help=text + shown, show_default=False, rich_help_panel=panel
        )
        annotation = Annotated[kind | None, option]
        options.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    function.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    return function


Model = Annotated[str, typer.Argument(help="base, micro, a model or run folder, or a Hub name", show_default=False)]
Task = Annotated[str, typer.Option(help="a task's name, a JSONL file, or hub:ORG/NAME")]
TaskOfRecipe = Annotated[
    str | None, typer.Option(help="a task's name, a JSONL file, or hub:ORG/NAME; else the recipe's own")
]
Verifier = Annotated[
    str | None,
    typer.Option(help="of files: exact, normalized, number, math, choice, python, sql, regex:..., FILE.py:FUNCTION"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float64, or mixed")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="take pickled weights where a model has no safetensors; as tensors only")
]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="let code that comes with the model run")]
Recipe = Annotated[str, typer.Argument(help="a recipe; see `whet recipes`", show_default=False)]
Pairs = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="the recipe's own arguments; see `whet show RECIPE`")
]


def print_version(asked: bool) -> None:
    if asked:
        print(f"whet {__version__}")
        raise typer.Exit


@app.callback()
def whet(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ and context.invoked_subcommand != "run":
        raise WhetError(f"torchrun is for `whet run`; start `whet {context.invoked_subcommand}` without it")


@app.command(rich_help_panel=TRAIN)
@takes_settings
def run(
    recipe: Annotated[
        str | None, typer.Argument(help="a recipe, or a run.yaml to run again", show_default=False)
    ] = None,
    arguments: Pairs = None,
    *,
    out: Annotated[Path | None, typer.Option(help="the run's folder; without it nothing is kept")] = None,
    resume: Annotated[Path | None, typer.Option(help="go on with the run in this folder", metavar="DIR")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything, estimate the memory, write nothing")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress, only the result")] = False,
    **settings: Any,
) -> None:
    """Train a model with a recipe: evaluate, train, evaluate again."""
    from whet.terminal.train import train

    given = {k: v for k, v in settings.items() if v not in (None, [])}
    train(recipe, arguments or [], given, out=out, resume=resume, quiet=quiet, dry_run=dry_run)


@app.command(name="eval", rich_help_panel=TRAIN)
def evaluate(
    model: Model = "base",
    task: Task = "chain-sum",
    n: Annotated[int, typer.Option(min=1, help="test problems")] = 512,
    k: Annotated[int, typer.Option(min=0, help="sampled answers to each (pass@k); 0 leaves them out")] = 16,
    verifier: Verifier = None,
    validation: Annotated[str | None, typer.Option(help="a file task's validation file")] = None,
    test: Annotated[str | None, typer.Option(help="a file task's test file")] = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes the cores there are, at most 8")] = 0,
    allow_pickle: AllowPickle = False,
    trust_remote_code: RemoteCode = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON and nothing else")] = False,
) -> None:
    """Measure a model on a task's test split."""
    from whet.terminal.ask import evaluate

    evaluate(model, task, n=n, k=k, verifier=verifier, validation=validation, test=test, device=device, dtype=dtype,
             threads=threads, as_json=json, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)  # fmt: skip


@app.command(rich_help_panel=TRAIN)
def ask(
    model: Model,
    question: Annotated[str, typer.Argument(help="as the task would ask it", show_default=False)],
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="tokens of the answer at most")] = 512,
    seed: Annotated[int, typer.Option(help="of the sampling")] = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    allow_pickle: AllowPickle = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Ask a model one question; the answer streams."""
    from whet.terminal.ask import ask

    ask(model, question, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed, device=device, dtype=dtype,
        allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)  # fmt: skip


@app.command(name="show-batch", rich_help_panel=LOOK)
def show_batch(
    recipe: Recipe,
    arguments: Pairs = None,
    task: TaskOfRecipe = None,
    model: Annotated[str | None, typer.Option(help="base, micro, a folder or Hub name; none is base")] = None,
    verifier: Verifier = None,
    seed: Annotated[int, typer.Option(help="root of all randomness")] = 0,
    n: Annotated[int, typer.Option("-n", min=1, help="rows to show")] = 3,
    allow_pickle: AllowPickle = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Show what the first step would learn: learnt tokens, segments, weights."""
    from whet.terminal.batch import show_batch
    from whet.terminal.train import config_of

    settings = {"task": task, "model": model, "verifier": verifier, "seed": seed, "allow_pickle": allow_pickle,
                "trust_remote_code": trust_remote_code}  # fmt: skip
    given = {k: v for k, v in settings.items() if v is not None}
    show_batch(config_of(recipe, arguments or [], given), n)


@app.command(name="audit-reward", rich_help_panel=LOOK)
def audit_reward(
    task: Annotated[
        str, typer.Option(help="a task's name, a JSONL file, or hub:ORG/NAME; `all`: every built-in task and verifier")
    ] = "chain-sum",
    verifier: Verifier = None,
    n: Annotated[int, typer.Option("-n", min=1, help="problems")] = 64,
    limit: Annotated[float, typer.Option(min=0.1, help="seconds that one verdict may take")] = 20.0,
    out: Annotated[Path | None, typer.Option("--json", help="write the table to this file")] = None,
) -> None:
    """Try answers that must not score on a verifier; exit with 1 if one does."""
    from whet.terminal.audit import audit_reward

    audit_reward(task, verifier, n, limit, out)


@app.command(rich_help_panel=LOOK)
def doctor(
    model: Annotated[str | None, typer.Option(help="base, micro, a folder or Hub name; none is base")] = None,
    recipe: Annotated[str, typer.Option(help="a recipe")] = "grpo",
    task: TaskOfRecipe = None,
    weights: Annotated[str, typer.Option(help="which weights move")] = "full",
    dtype: Dtype = "float32",
    token_budget: Annotated[int, typer.Option(min=0, help="tokens run at once; 0: by device")] = 0,
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="recompute activations in the backward")
    ] = False,
    gpus: Annotated[int, typer.Option(min=1, help="ranks that share the run, a GPU each")] = 1,
    shard: Annotated[bool, typer.Option("--shard", help="cut parameters, gradients and moments among them")] = False,
    optimizer: Annotated[str, typer.Option(help="adamw, or adamw8bit")] = "adamw",
    quantize: Annotated[str, typer.Option(help="nf4 holds the model in 4 bits under adapters")] = "none",
    allow_pickle: AllowPickle = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Versions, devices, threads, and an estimate of the memory a run takes."""
    from whet.terminal.doctor import doctor
    from whet.terminal.train import config_of

    settings = {"model": model, "task": task, "weights": weights, "dtype": dtype, "token_budget": token_budget,
                "activation_checkpointing": activation_checkpointing, "allow_pickle": allow_pickle,
                "trust_remote_code": trust_remote_code, "shard": shard, "optimizer": optimizer, "quantize": quantize}  # fmt: skip
    doctor(config_of(recipe, [], {k: v for k, v in settings.items() if v is not None}), gpus)


@tasks_app.callback()
def tasks(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        from whet.terminal.inspect import list_tasks

        list_tasks()


@tasks_app.command(name="show")
def show_task(
    name: Annotated[str, typer.Argument(help="a task's name, NAME:level=2, or a file", show_default=False)],
    verifier: Verifier = None,
    n: Annotated[int, typer.Option("-n", min=1, help="problems to show")] = 3,
) -> None:
    """Problems of a task with rationales, a wrong rationale, and verdicts."""
    from whet.terminal.inspect import show_task

    show_task(name, verifier, n)


@app.command(rich_help_panel=LIST)
def recipes() -> None:
    """The recipes: one a method."""
    from whet.terminal.inspect import list_recipes

    list_recipes()


@app.command(rich_help_panel=LIST)
def show(recipe: Recipe) -> None:
    """A recipe's paper, equation, arguments and stages."""
    from whet.terminal.inspect import show_recipe

    show_recipe(recipe)


@app.command(rich_help_panel=LIST)
def papers(family: Annotated[str | None, typer.Option(help="only this family")] = None) -> None:
    """The papers: implemented or planned, with the last verdict."""
    from whet.terminal.inspect import list_papers

    list_papers(family)


@base_app.command(name="build")
def build_base(
    name: Annotated[str, typer.Argument(help="which of the shipped bases: base or micro", show_default=False)],
    out: Annotated[Path, typer.Option(help="where it is made; the model will be in DIR/model", metavar="DIR")],
    steps: Annotated[int | None, typer.Option(min=1, help="fewer steps than its file says, for a trial")] = None,
) -> None:
    """Pretrain a base as it was made, from its file; goes on where it stopped."""
    from whet.terminal.train import build_base

    build_base(name, out, steps)


@base_app.command(name="sheet")
def base_sheet(
    out: Annotated[Path, typer.Option(help="where the cells and sheet.md are written", metavar="DIR")],
    model: Annotated[str | None, typer.Option(help="base, micro, a folder or Hub name; none is base")] = None,
    task: Annotated[list[str] | None, typer.Option(help="a task to measure; may be given again; none is all")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="test problems a cell")] = 512,
    k: Annotated[int, typer.Option(min=1, help="sampled answers to each")] = 16,
) -> None:
    """The data-sheet of a base: accuracy, pass@k and ended share of each task and level; goes on where it stopped."""
    from whet.launch import set_threads
    from whet.models.base import load
    from whet.sheet import measure

    set_threads(0)
    measure(load(model), out, names=task, n=n, k=k, tell=print)


add_compare_commands(app, TRAIN)
add_run_commands(app, LIST)
add_weights_commands(app, LIST, LOOK, MAKE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a mistake that the user can mend is one line on stderr and exit code 2."""
    try:
        app(arguments, prog_name="whet")
    except WhetError as problem:
        print(f"whet: error: {' '.join(str(problem).split())}", file=sys.stderr)
        sys.exit(2)
