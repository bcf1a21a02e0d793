"""What a user can get wrong, in numbers: `survey` tries it and counts. `python tests/faults/bad_input.py 2000` prints the table.

Each attempt ends in one of two ways: it is taken, or it is refused by a `WhetError` of one line that says where. Anything
else is an AssertionError with the input in it.
"""

# ruff: noqa: B023 (what is attempted is called at once, in the turn of the loop that made it)
from __future__ import annotations

import json
import shutil
import string
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import tiny_policy, tiny_tokenizer
from whet.config import RunConfig
from whet.errors import WhetError
from whet.evaluation.probes import get_probes
from whet.launch import configure
from whet.models import base
from whet.models.format import Format
from whet.recipes.recipe import recipes
from whet.runs import RunFolder, index
from whet.tasks import get_task
from whet.tasks.files import read_files
from whet.tasks.problem import Problem, Response
from whet.tasks.rows import FIELDS
from whet.training import checkpoint
from whet.training.budget import Budget
from whet.weights import get_weights
from whet.weights.snapshot import write_weights

Kind = Callable[[int, Path, "Tally"], None]


class Tally(Counter[str]):
    """`tried`, `refused` and `taken` attempts of one kind."""

    def attempt(self, call: Callable[[], object], *says: str, what: object = "", must: bool = False) -> str:
        """Try; what the refusal said, or "" where there was none.

        Args:
            says: each must stand in the refusal: the file and line, the field.
            what: the input, for the failure of the test.
            must: whether it has to be refused.
        """
        self["tried"] += 1
        told = repr(what)[:300]
        try:
            call()
        except WhetError as problem:
            self["refused"] += 1
            text = str(problem)
            assert text and "\n" not in text and len(text) < 5000, f"not one line: {text!r} of {told}"
            text.encode()  # a terminal must be able to write it
            missing = [s for s in says if s not in text]
            assert not missing, f"the refusal '{text}' does not say {missing}; given {told}"
            return text
        except Exception as problem:
            raise AssertionError(f"{type(problem).__name__} from inside, given {told}: {problem}") from problem
        assert not must, f"taken: {told}"
        self["taken"] += 1
        return ""


def cases(n: int, *strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
    """Call the function below with `n` drawn inputs; the same ones each time."""

    def decorate(body: Callable[..., None]) -> None:
        options = settings(
            max_examples=n, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
        )
        options(given(*strategies)(body))()

    return decorate


TEXT = st.text(max_size=8) | st.sampled_from(["", " ", "B", "a", "nan", "1/0", "\0", "\ud800", "é", "x\ny", "q" * 2000])
NUMBER = st.integers(-3, 3) | st.floats() | st.sampled_from([10**400, -(10**30), 1e308])
SCALAR = st.none() | st.booleans() | NUMBER | TEXT
MESSAGE = st.fixed_dictionaries({}, optional={"role": st.sampled_from(["user", "assistant", "tool", ""]) | SCALAR,
                                              "content": TEXT | SCALAR})  # fmt: skip
JUNK = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
FIELD = st.sampled_from([*FIELDS, "label", "completions", "labels", "text"])
ROW = (
    st.dictionaries(FIELD, TEXT | st.lists(MESSAGE, max_size=3) | st.lists(TEXT, max_size=3) | JUNK, max_size=5) | JUNK
)
ROW |= st.dictionaries(FIELD, TEXT | NUMBER, max_size=2).map(lambda wrong: {"prompt": "q", "answer": "a", **wrong})
GOOD = b'{"prompt": "What is 1+1?", "answer": 2}\n'


def use(path: Path) -> None:
    """All that a run asks of a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rows that are left out
        task = read_files(str(path))
    for split in ("train", "validation", "test"):
        if not task._places[split].handles:
            continue
        for problem in task.problems(split):
            task.where(problem)
            if "verifier" in task.provides():
                task.verify(problem, Response("x", "x", "", True))


def rows(n: int, folder: Path, tally: Tally) -> None:
    """Rows of every JSON value in every field, behind two good ones."""
    path = folder / "mine.jsonl"

    @cases(n, ROW)
    def _(row: Any) -> None:
        path.write_bytes(GOOD * 2 + json.dumps(row).encode() + b"\n")
        tally.attempt(lambda: use(path), f"{path}:3: ", what=row)


FIELD_IN = [  # what of a row is wrong, and the field that must be named
    *((field, {"prompt": "q", "answer": "a", field: wrong}) for field in ("prompt", "answer", "rationale", "plan", "category")
      for wrong in (True, {}, [["x"]], "", "\ud800")),
    *(("level", {"prompt": "q", "level": wrong}) for wrong in (0, -1, 1.5, "1", [], {})),
    *((field, {"prompt": "q", "choices": ["a", "b"], field: wrong}) for field in ("choices", "choice_rationales")
      for wrong in (3, [], ["a"], "ab", {}, [None, None])),
    *((field, {"prompt": "q", "chosen": "a", "rejected": "b", field: wrong}) for field in ("chosen", "rejected")
      for wrong in (None, 3, [], "", [3])),
    *(("messages", {"messages": wrong}) for wrong in (3, "x", [], {}, [3], [{"role": 3}], [{"role": "user"}])),
    ("prompt", {"answer": "a"}), ("completion", {"prompt": "q", "completion": 3}),
]  # fmt: skip


def fields(n: int, folder: Path, tally: Tally) -> None:
    """Rows with one field wrong: the refusal names file, line and field."""
    path = folder / "mine.jsonl"
    for name, row in FIELD_IN:
        path.write_bytes(GOOD + json.dumps(row).encode())
        tally.attempt(lambda: use(path), f"{path}:2: ", name, what=row, must=True)


ODD_FILES: list[tuple[bytes, bool]] = [  # contents, and whether they must be refused
    *((data, True) for data in (
        b"", b"\n\r\n", b"\xef\xbb\xbf", b"\0", b"\0" * 4096, b"null", b"1", b'"a"', b"\xff\xfe{\0}\0", b'{"prompt":"\xe9"}',
        b'{"prompt": "a", "answer": NaN}', b'{"prompt": "a', b'{"a":' * 5000, b"[" * 100_000,
        b'{"prompt": "a"}{"prompt": "b"}', GOOD + GOOD[:-9], GOOD + b"\0" + GOOD, GOOD.replace(b"\n", b"\r") * 2,
    )),
    *((data, False) for data in (
        b"\xef\xbb\xbf" + GOOD * 3, GOOD.replace(b"\n", b"\r\n") * 3, GOOD.rstrip(), GOOD + b"\n\n" + GOOD, GOOD * 1000,
        b'{"prompt": "a", "id": 1}\n' * 2, b'{"prompt": "' + b"a" * 3_000_000 + b'"}', b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "a\\u0000", "answer": "1e999999999"}', b'{"prompt": "a", "x":' + b"[" * 500 + b"]" * 500 + b"}",
    )),
]  # fmt: skip


def files(n: int, folder: Path, tally: Tally) -> None:
    """Whole files: odd ones by hand, good ones with bytes changed, both as JSON Lines and as a list; odd paths."""
    for number, (data, bad) in enumerate(ODD_FILES):
        for suffix in (".jsonl", ".json"):
            path = folder / f"odd-{number}{suffix}"
            path.write_bytes(data)
            tally.attempt(lambda: use(path), path.name, what=data[:60], must=bad)
    good = (
        GOOD + b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "level": 2}\n'
    )
    path = folder / "mine.jsonl"

    @cases(n, st.lists(st.tuples(st.integers(0, len(good) - 1), st.binary(max_size=3)), min_size=1, max_size=4))
    def _(changes: list[tuple[int, bytes]]) -> None:
        data = good
        for at, new in changes:
            data = data[:at] + new + data[at + 1 :]
        path.write_bytes(data)
        tally.attempt(lambda: use(path), str(path), what=data)

    for name in (
        "",
        ".",
        "~nobody-has-this-name/x.jsonl",
        "a\0.jsonl",
        "é" * 300 + ".jsonl",
        "/dev/null",
        "gone.jsonl",
        "x.csv",
    ):
        tally.attempt(lambda: read_files(name), what=name, must=True)


TEMPLATES: list[Any] = [
    "", "{# nothing #}", "{{ raise_exception('roles must alternate') }}", "{{ 1 / 0 }}", "{{ messages[9]['content'] }}",
    "{% for", "{{ unknown() }}", "{{ range(10 ** 9) | list }}", "{{ messages[0].x.y.z }}", "{{ messages.__class__.mro() }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% include 'x' %}", "{{ messages | nofilter }}",
]  # fmt: skip
ALTERNATE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('odd') }}"
    "{% endif %}{{ m['content'] }}{% endfor %}"
)


def templates(n: int, folder: Path, tally: Tally) -> None:
    """Chat templates that raise, make nothing or refuse the roles; conversations of odd roles in every style."""
    tokenizer = deepcopy(tiny_tokenizer("chat"))  # which is shared
    problem = Problem("mine/train/3", "q", "a")
    for template in TEMPLATES:
        tokenizer.chat_template = template
        form = Format(tokenizer, "chat")
        tally.attempt(lambda: form.prompt(problem), "mine/train/3", "chat_template", what=template, must=True)
    tokenizer.chat_template = ALTERNATE
    styles = [Format(tokenizer, "chat"), Format(tiny_tokenizer("tags")), Format(tiny_tokenizer())]
    role = st.sampled_from(["user", "assistant", "system", "tool", ""]) | st.text(
        st.characters(codec="utf-8"), max_size=4
    )
    turns = st.lists(st.tuples(role, st.text(st.characters(codec="utf-8"), max_size=4)), min_size=1, max_size=5)

    @cases(n, turns)
    def _(turns: list[tuple[str, str]]) -> None:
        asked = Problem("mine/train/4", "q", messages=tuple({"role": r, "content": c} for r, c in turns))
        for form in styles:
            tally.attempt(lambda: form.prompt(asked), "mine/train/4", "chat_template", what=turns)


WRONG: list[Any] = ["many", "", "null", "nan", "[]", "{}", "-1", "1e999", None, True, -1, 0, -0.5, 2.5, 10**30, float("nan"),
                    float("inf"), float("-inf"), [], {}, [None], ["a"], {"a": 1}]  # fmt: skip


def arguments(n: int, folder: Path, tally: Tally) -> None:
    """Every argument of every recipe with values of wrong types and out of range (below n = 1000 a quarter of them); `n` pairs besides."""
    known = recipes()
    for name, entry in known.items():
        for place, argument in enumerate(entry.arguments.values()):
            for value in WRONG if n >= 1000 else WRONG[place % 4 :: 4]:
                typed = f"recipe '{name}': {argument.name} is " if _other_type(argument.type, value) else ""
                tally.attempt(lambda: build(name, {argument.name: value}), typed, what=(name, argument.name, value),
                              must=bool(typed))  # fmt: skip
    every = st.sampled_from([(name, *pair) for name, entry in known.items() if len(entry.arguments) > 1
                             for pair in zip(entry.arguments, list(entry.arguments)[1:], strict=False)])  # fmt: skip

    @cases(n, every, st.sampled_from(WRONG), st.sampled_from(WRONG))
    def _(names: tuple[str, str, str], one: Any, other: Any) -> None:
        name, *pair = names
        values = dict(zip(pair, (one, other), strict=True))
        tally.attempt(lambda: build(name, values), what=(name, values))


def build(name: str, values: dict[str, Any]) -> None:
    """What a run does with a recipe's arguments before it loads a model."""
    made = recipes()[name](**values) if name != "pretrain" else recipes()[name].read(values)
    for stage in getattr(made, "stages", ()):
        stage.check()
        stage.needs()
        stage.describe()


def _other_type(kind: str, value: Any) -> bool:
    """Whether the value, given from Python, is of no type that the argument names."""
    if isinstance(value, str) or kind not in ("int", "float", "bool", "str"):
        return False
    accepted = {"int": int, "float": (int, float), "bool": bool, "str": str}[kind]
    return not isinstance(value, accepted) or (isinstance(value, bool) and kind != "bool")


SPECS = ["", ":", "x", "x:", "x:y", "x:y=z", "lora:rank=-1", "lora:rank=nan", "lora:rank=1e999", "hft:share=2", "lora:rank",
         "flops:-1", "flops:nan", "steps:0", "minutes:inf", "chain-sum:level=x", "chain-sum:level=-1", "chain-sum:x=1",
         "parity:level=1-", "é" * 3000, "\0", "~nobody-has-this-name", "a.json"]  # fmt: skip


def configs(n: int, folder: Path, tally: Tally) -> None:
    """Settings, run.yaml as text and as structure, and the specs that settings are."""
    for field in RunConfig.model_fields:
        for value in WRONG:
            tally.attempt(lambda: RunConfig.make({"recipe": "sft", field: value}), f"'{field}", what=(field, value))
    for task in (3, [], ["x"], object()):
        tally.attempt(lambda: configure("sft", task=task), "'task'", what=task, must=True)  # pyright: ignore[reportArgumentType]
    for key in (1, None, True, "stepz", "\0"):
        tally.attempt(lambda: RunConfig.make({key: 1}), "unknown setting", what=key, must=True)  # pyright: ignore[reportArgumentType]
    for name, parse in (("weights", get_weights), ("budget", Budget.parse), ("task", get_task)):
        for spec in SPECS:
            tally.attempt(lambda: parse(spec), what=(name, spec))
    for probe in ("", "x", "drift:", "\0"):
        tally.attempt(lambda: get_probes([probe]), what=probe, must=True)
    path = folder / "run.yaml"
    texts = [b"", b"\xff\xfe", b"\0", b"recipe: [", b"- a", b"\t", b"recipe: sft\n1: 2", b"recipe: sft\nrecord: 3", b"recipe: " +
             b"[" * 5000, b"recipe: !!python/object:os.system x", b"recipe: &a [*a]", b"recipe: 2020-13-45", b"? [a]\n: b",
             b"recipe: sft\n<<: 3", b"recipe: sft\nseed: !!int x", b"recipe: sft\nseed: .nan", b"recipe: sft\narguments: [1]",
             b"recipe: sft\nseed: 1" + b"0" * 5000, b"recipe: sft\nsteps: 3", b"recipe: sft\nk: -1"]  # fmt: skip
    for text in texts:
        path.write_bytes(text)
        tally.attempt(lambda: RunConfig.read(path), what=text[:60], must=True)

    lines = st.text(string.ascii_letters + string.digits + ":-[]{}&*!|>'\"#%@?,. \n\t\0é", max_size=40)

    @cases(n, lines | st.builds("recipe: sft\n{}: {}".format, st.sampled_from(list(RunConfig.model_fields)), lines))
    def _(text: str) -> None:
        path.write_text(text, encoding="utf-8")
        tally.attempt(lambda: RunConfig.read(path), what=text)


def cuts(data: bytes) -> dict[str, bytes | None]:
    """A file torn at each class of places, damaged, or gone."""
    header = 8 + int.from_bytes(data[:8], "little") if data[:1] != b"P" else len(data) // 4
    header = header if header < len(data) else len(data) // 2
    places = {"nothing": 0, "a byte": 1, "half a length": 4, "a length": 8, "a header's begin": 9, "half a header": header // 2,
              "all but its end": header - 1, "a header": header, "half a tensor": (header + len(data)) // 2,
              "all but a byte": len(data) - 1}  # fmt: skip
    other = {"zeros": bytes(len(data)), "text": b"not what it was", "endless": b"\xff" * 8 + data[8:], "gone": None}
    return {**{name: data[:at] for name, at in places.items()}, **other}


def put(file: Path, data: bytes | None) -> None:
    file.unlink(missing_ok=True)
    if data is not None:
        file.write_bytes(data)


def checkpoints(n: int, folder: Path, tally: Tally) -> None:
    """Checkpoints torn at every class of places and at `n` more, with a wrong bit, swapped, of another shape, and another model's."""
    saved = checkpoint.save(folder / "c", 1, {"w": torch.ones(64)}, {"step": 1, "nested": {"t": torch.ones(9)}})
    says = (str(saved), "remove it")
    whole = {name: (saved / name).read_bytes() for name in ("weights.safetensors", "state.pt")}
    for name, data in whole.items():
        torn = {**cuts(data), "the other": next(d for o, d in whole.items() if o != name)}
        torn |= {str(at): data[:at] for at in range(0, len(data), max(1, len(data) // n))}
        torn |= {
            f"bit {at}": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            for at in range(0, len(data), max(1, len(data) // n))
        }
        for what, left in torn.items():
            put(saved / name, left)
            tally.attempt(lambda: checkpoint.load(saved), *says, what=(name, what), must=True)
        put(saved / name, data)
    for state in (3, [1], None, "x", torch.ones(1)):
        torch.save(state, saved / "state.pt")
        checkpoint.seal(saved)
        tally.attempt(lambda: checkpoint.load(saved), *says, what=state, must=True)
    policy, other = tiny_policy(), tiny_policy("gpt2")
    with torch.no_grad():
        for theirs in (dict(other.named_parameters()), {"no.such.weight": torch.ones(1)}):
            tally.attempt(lambda: write_weights(policy, theirs), "another model", what="another's", must=True)


def models(n: int, folder: Path, tally: Tally) -> None:
    """Each file of a model folder torn, emptied, of wrong JSON or gone."""
    whole, torn = folder / "whole", folder / "torn"
    tiny_policy(style="tags").save(whole)
    json_files = [b"[]", b"null", b"3", b'"x"', b'{"a": 1}']
    names = sorted({p.name for p in whole.iterdir()} | {"whet.json", "adapter_config.json", "generation_config.json"})
    tries = [(name, what, left) for name in names
             for what, left in (*cuts((whole / name).read_bytes() if (whole / name).exists() else b"{}   ").items(),
                                *((w.decode(), w) for w in json_files if name.endswith(".json")))]  # fmt: skip
    step = max(1, len(tries) // n)
    for name, what, left in tries[::step]:
        shutil.rmtree(torn, ignore_errors=True)
        shutil.copytree(whole, torn)
        put(torn / name, left)
        tally.attempt(lambda: base.load(torn, device="cpu"), str(torn), what=(name, what))
    for name in ("", "x", "a/b/c", "é" * 3000, "/dev/null", "~nobody-has-this-name/x"):
        tally.attempt(lambda: base.load(name, device="cpu"), what=name, must=True)
    for device in ("", "x", "cuda:x", "meta", "cpu:99:1", "é"):
        tally.attempt(lambda: base.pick_device(device), f"'{device}'", what=device, must=True)


def runs(n: int, folder: Path, tally: Tally) -> None:
    """Run folders whose files hold anything."""
    path = folder / "run"
    path.mkdir()

    @cases(n, st.sampled_from(["run.yaml", "summary.json", "before.json", "results.json"]), JUNK)
    def _(name: str, value: Any) -> None:
        for file in path.iterdir():
            file.unlink()
        (path / "run.yaml").write_text("recipe: sft\ntask: parity\n")
        (path / name).write_text(json.dumps(value))
        tally.attempt(lambda: index.read(path), str(path), what=(name, value))

    @cases(n, st.binary(max_size=20))
    def _(tail: bytes) -> None:
        run = RunFolder(path)
        run.metrics.write_bytes(b'{"step": 1}\n' + tail)
        tally.attempt(run.read_metrics, f"{run.metrics}:", what=tail)


KINDS: dict[str, Kind] = {
    f.__name__: f for f in (rows, fields, files, templates, arguments, configs, checkpoints, models, runs)
}


def survey(n: int, kinds: tuple[str, ...] = tuple(KINDS)) -> dict[str, Tally]:
    """What was tried, refused and taken of each kind, with about `n` drawn inputs beside those that are listed."""
    found = {}
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = Tally()
            KINDS[kind](n, Path(folder), found[kind])
    return found


if __name__ == "__main__":
    print("| input | tried | refused | taken |\n|---|---|---|---|")
    for kind, tally in survey(int(sys.argv[1]) if len(sys.argv) > 1 else 100).items():
        print(f"| {kind} | {tally['tried']} | {tally['refused']} | {tally['taken']} |")
