"""Functions that a user names as `module.py:function`, and TRL-style reward functions among them."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from whet.errors import WhetError, unknown
from whet.tasks.problem import Problem


def is_function_spec(spec: str) -> bool:
    """Whether `spec` has the form `module.py:function`."""
    return ".py:" in spec


def load_function(spec: str) -> Any:
    """The object `name` of the Python file in `path/to/module.py:name`; the file is run."""
    path_text, _, name = spec.rpartition(":")
    path = Path(path_text).expanduser()
    if not path.is_file():
        raise WhetError(f"'{spec}': there is no file '{path_text}'")
    # one module a file and content: the same file named twice shares its state, a changed file is read again
    digest = hashlib.blake2b(str(path.resolve()).encode() + path.read_bytes(), digest_size=8).hexdigest()
    module_name = f"whet_user_{path.stem}_{digest}"
    module = sys.modules.get(module_name)
    if module is None:
        found = importlib.util.spec_from_file_location(module_name, path)
        assert found and found.loader
        module = importlib.util.module_from_spec(found)
        sys.modules[module_name] = module  # dataclasses in the file look their module up while it runs
        try:
            found.loader.exec_module(module)
        except Exception as problem:
            del sys.modules[module_name]
            raise WhetError(f"'{path_text}' cannot be imported: {type(problem).__name__}: {problem}") from problem
    if not hasattr(module, name):
        raise unknown(f"function in '{path_text}'", name, [n for n in vars(module) if not n.startswith("_")])
    return getattr(module, name)


def parameters(function: Any) -> set[str]:
    """The names of a callable's parameters."""
    return set(inspect.signature(function).parameters)


def is_trl(function: Any) -> bool:
    """Whether a function has the signature of a TRL reward function: it names `completions`."""
    return callable(function) and "completions" in parameters(function)


def columns_of(problem: Problem) -> dict[str, Any]:
    """What a row of a data set holds besides prompt and completion, under the names that TRL functions ask for."""
    own: dict[str, Any] = {"answer": problem.answer, "rationale": problem.rationale, "level": problem.level,
                           "category": problem.category, "choices": list(problem.choices)}  # fmt: skip
    return {**own, **problem.data}


def call_trl(
    function: Callable[..., Any],
    problems: Sequence[Problem],
    texts: Sequence[str],
    completion_ids: Sequence[list[int]] | None = None,
) -> list[float]:
    """Call a TRL reward function on answers given to problems (one each) and return its values; None is NaN.

    Prompts and completions are strings, or lists of messages where a problem has messages, as in TRL's GRPOTrainer.
    Columns of the rows are passed as lists. A function without `**kwargs` gets only what it names.
    """
    name = getattr(function, "__name__", type(function).__name__)
    chat = any(p.messages for p in problems)
    prompts: list[Any] = [p.prompt for p in problems]
    completions: list[Any] = list(texts)
    if chat:
        prompts = [[dict(m) for m in p.messages] or [{"role": "user", "content": p.prompt}] for p in problems]
        completions = [[{"role": "assistant", "content": text}] for text in texts]
    offered: dict[str, Any] = {"prompts": prompts, "completions": completions}
    if completion_ids is not None:
        offered["completion_ids"] = [list(ids) for ids in completion_ids]
    rows = [columns_of(p) for p in problems]
    offered |= {key: [row.get(key) for row in rows] for row in rows for key in row if key not in offered}

    wanted = inspect.signature(function).parameters.values()
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    missing = [p.name for p in wanted if p.name not in offered and p.default is p.empty and p.kind not in variadic]
    if missing:
        raise WhetError(f"function '{name}' asks for {', '.join(missing)}; there are {', '.join(sorted(offered))}")
    if not any(p.kind is p.VAR_KEYWORD for p in wanted):
        named = {p.name for p in wanted}
        offered = {key: value for key, value in offered.items() if key in named}
    result = function(**offered)
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    values = [float("nan") if v is None else float(v) for v in result]
    if len(values) != len(problems):
        raise WhetError(f"function '{name}' returned {len(values)} values for {len(problems)} completions")
    return values
