"""`whet eval` and `whet ask`: a model is measured, and asked."""

from __future__ import annotations

import json
import sys
from itertools import groupby

from rich.console import Console
from rich.text import Text

from whet.evaluation.evaluate import Evaluator, Plan
from whet.evaluation.matrix import Cell, Matrix
from whet.launch import set_threads
from whet.models import base
from whet.models.policy import Policy
from whet.sampling import Request, SamplingSettings, stream
from whet.tasks import Problem, get_task
from whet.terminal.console import amount, console, percent, quiet_libraries
from whet.terminal.tables import measured

SHOWN = 3  # prompts
STYLES = {"<think>": "dim", "<plan>": "dim", "<execute>": "dim", "<critique>": "dim", "<answer>": "bold"}


def evaluate(
    model: str, task: str, *, n: int, k: int, verifier: str | None, validation: str | None, test: str | None,
    device: str, dtype: str, threads: int, as_json: bool, allow_pickle: bool = False, trust_remote_code: bool = False,
) -> None:  # fmt: skip
    """Measure a model on a task's test split."""
    quiet_libraries()
    set_threads(threads)
    asked = get_task(task, verifier=verifier, validation=validation, test=test)
    asked.problems("test", 1)
    policy = base.load(
        model, device=device, dtype=dtype, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
    )
    screen = console()
    working = f"{n} problems, one greedy answer" + (f" and {k} sampled ones each" if k else "")
    with console(stderr=True).status(working):
        found, matrix = Evaluator(asked, Plan(n=n, k=k)).test(policy)
    if as_json:
        name = {"model": policy.name, "hash": base.weights_hash(policy.model), "parameters": policy.size()}
        print(json.dumps({"model": name, "task": asked.spec(), "test": found}, indent=1))
        return
    size = f"{amount(policy.size())} parameters, {device_of(policy)}"
    screen.print(f"[bold]{model}[/] on [bold]{asked.spec()}[/]  [dim]{size}[/]")
    screen.print()
    for problem, row in list(zip(matrix.problems, matrix.cells, strict=True))[:SHOWN]:
        show_exchange(screen, policy, problem, row[0])
    screen.print(extraction(matrix))
    screen.print(measured(found))


def show_exchange(screen: Console, policy: Policy, problem: Problem, cell: Cell) -> None:
    """A prompt as the model sees it, special tokens in colour, with the greedy answer and its verdict."""
    prompt = [i for s in policy.format.prompt(problem) for i in s.ids]
    screen.print(Text("prompt   ", style="dim") + visible(policy, prompt))
    end = "" if cell.ended else "  (not ended)"
    style = "green" if cell.value == 1.0 else "red" if cell.value == 0.0 else "yellow"
    screen.print(Text("answer   ", style="dim") + Text(one_line(cell.text)) + Text(end, style="yellow"))
    verdict = Text(cell.status, style=style) + Text(f"  gold {problem.answer}", style="dim")
    screen.print(Text("verdict  ", style="dim") + verdict)
    screen.print()


def extraction(matrix: Matrix) -> Text:
    """How many greedy answers the format found no answer in."""
    cells = [row[0] for row in matrix.cells]
    none = sum(c.label is None for c in cells) / len(cells)
    unparseable = sum(c.status == "unparseable" for c in cells) / len(cells)
    failed = sum(c.status in ("error", "timeout") for c in cells) / len(cells)
    text = f"extraction  no answer found in {percent(none)}, not readable {percent(unparseable)}"
    return Text(text + (f", could not be judged {percent(failed)}" if failed else ""), style="dim")


def visible(policy: Policy, ids: list[int]) -> Text:
    """The text of token ids with special tokens in colour and line breaks shown."""
    special = set(policy.tokenizer.all_special_ids) | set(policy.tokenizer.added_tokens_decoder)
    text = Text()
    for is_special, span in groupby(ids, special.__contains__):
        text.append(one_line(policy.tokenizer.decode(list(span))), style="cyan" if is_special else "")
    return text


def one_line(text: str) -> str:
    """Line breaks as a sign."""
    return text.replace("\n", "⏎ ")


def device_of(policy: Policy) -> str:
    """The device and precision a policy runs in."""
    return f"{policy.device.type}, {'mixed' if policy.mixed else str(policy.dtype).removeprefix('torch.')}"


def ask(
    model: str, question: str, *, temperature: float, max_new_tokens: int, seed: int, device: str, dtype: str,
    allow_pickle: bool = False, trust_remote_code: bool = False,
) -> None:  # fmt: skip
    """Print the model's answer to a question as it is sampled: its thoughts dim on a terminal."""
    quiet_libraries()
    set_threads(0)
    policy = base.load(
        model, device=device, dtype=dtype, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
    )
    settings = SamplingSettings(max_new_tokens, temperature)
    request = Request(policy.format.prompt(Problem(id="", prompt=question)), [seed], settings)
    screen = console()
    style = ""
    for piece in stream(policy, request):
        tag = piece.strip()
        opens, closes = tag in STYLES, tag.startswith("</")
        style = STYLES.get(tag, style)
        screen.print(Text(piece, style="cyan" if opens or closes else style), end="", soft_wrap=True)
        if closes:
            style = ""
            if tag != "</answer>":
                screen.print()
        sys.stdout.flush()
    screen.print()
