"""The process in which reasoning-gym runs: one JSON request a line in, one JSON reply a line out.

Why a process of its own: the library iterates over sets of strings, so its problems are the same in every run only
under a fixed PYTHONHASHSEED; nine of its scorers evaluate the answer's text; some generators print or run code. Here
the hash seed is fixed, memory is limited, no file can be written, and the asker can end what does not answer.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import json
import os
import random
import re
import sys
from typing import Any

from whet.tasks.task import split_of

SEED = 0  # of every data set; a problem is chosen by its index alone
SIZE = 2**31 - 1
# These build all their items, or a list as long as they are, at the start, or check the index.
SIZES = {"acre": 5_000, "gsm_symbolic": 100_000, "list_functions": 100_000, "word_ladder": 20_000}
MAX_DRAWS = 1_000
MEMORY = 4 * 2**30

# Where `answer` is None because many are right, an example stands in the metadata (boxnet and rush_hour have none).
GOLD = {
    "graph_color": lambda metadata: json.dumps(metadata["possible_answer"]),
    "rubiks_cube": lambda metadata: metadata["example_correct_answer"],
    "propositional_logic": lambda metadata: metadata["example_answer"],
}

# Scorers that hand the answer to Python's eval, directly or through sympy's parser.
EVALUATES = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
PARSES = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
_LITERAL = (ast.Expression, ast.List, ast.Tuple, ast.Constant, ast.Name, ast.Load, ast.UnaryOp, ast.USub)
_ALGEBRA = re.compile(r"[A-Za-z0-9\s+\-*/^().,]*", re.ASCII)
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_FUNCTIONS = set("sin cos tan sec csc cot asin acos atan sinh cosh tanh exp log ln sqrt pi Abs Integral".split())  # noqa: SIM905


def is_harmless(name: str, answer: str) -> bool:
    """Whether the data set's scorer may see the answer: it is not evaluated, or is no more than data or algebra."""
    if name in PARSES:
        words = _WORD.findall(answer)
        # a point before a letter would reach into an object
        plain = _ALGEBRA.fullmatch(answer) and not re.search(r"\.\s*[A-Za-z]", answer)
        return bool(plain) and all(len(w) == 1 or w in _FUNCTIONS for w in words)
    if name in EVALUATES:
        try:
            tree = ast.parse(answer.strip(), mode="eval")
        except (SyntaxError, ValueError):
            return True  # nor will eval get anywhere
        except (RecursionError, MemoryError):
            return False
        return all(isinstance(node, _LITERAL) for node in ast.walk(tree))
    return True


@functools.lru_cache(maxsize=256)
def dataset(name: str, level: int, options: str) -> Any:
    """The data set: the library's default configuration (level 0) or its curriculum's, then the options over it."""
    from reasoning_gym.factory import DATASETS, create_curriculum

    dataset_cls, config_cls = DATASETS[name]
    fixed = {"seed": SEED, "size": SIZES.get(name, SIZE)}
    if level:
        curriculum = create_curriculum(name)
        curriculum.set_global_level(level - 1)
        config = curriculum.generate_configuration(fixed)
    else:
        config = config_cls(**fixed)
    config = dataclasses.replace(config, **json.loads(options))
    if hasattr(config, "validate"):  # power_function and tsumego have none
        config.validate()
    return dataset_cls(config)


@functools.lru_cache(maxsize=4096)
def item(name: str, level: int, options: str, index: int) -> dict[str, Any]:
    """One item of the library: question, answer, metadata."""
    random.seed(index)  # should a generator use the global one, its item still depends on the index alone
    return dataset(name, level, options)[index]


def describe(name: str) -> dict[str, Any]:
    """{fields: name -> default, levels: how many the curriculum knows}."""
    from reasoning_gym.factory import DATASETS, create_curriculum, has_curriculum

    fields = {
        f.name: f.default
        for f in dataclasses.fields(DATASETS[name][1])
        if isinstance(f.default, int | float | str) and f.name not in ("seed", "size")
    }
    levels = [len(a.levels) for a in create_curriculum(name).attributes.values()] if has_curriculum(name) else []
    return {"fields": fields, "levels": max(levels, default=0)}


def names() -> list[str]:
    """All data sets; `composite` is a mixture of others and needs to be told which."""
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - {"composite"})


def draw(name: str, level: int, options: str, split: str, seed: int) -> dict[str, Any]:
    """The first item of a stream of random indices whose question hashes into `split`."""
    rng = random.Random(seed)
    for _ in range(MAX_DRAWS):
        index = rng.randrange(SIZES.get(name, SIZE))
        found = item(name, level, options, index)
        if split_of(found["question"]) == split:
            answer = found["answer"]
            if answer is None and name in GOLD:
                answer = GOLD[name](found["metadata"])
            cot = found["metadata"].get("answer_cot", "") if "metadata" in found else ""
            lines = [line.strip() for line in cot.splitlines() if line.strip() and not line.startswith("####")]
            return {"index": index, "question": found["question"], "answer": answer, "steps": lines}
    raise LookupError(f"none of {MAX_DRAWS} problems falls in the {split} split: the data set has too few")


def score(name: str, level: int, options: str, index: int, answer: str) -> float | None:
    """The library's own score; None where its scorer must not see the answer."""
    if not is_harmless(name, answer):
        return None
    entry = copy.deepcopy(item(name, level, options, index))  # a scorer may play on the entry's board
    return float(dataset(name, level, options).score_answer(answer, entry))


HANDLERS = {"names": names, "describe": describe, "draw": draw, "score": score}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the library prints must not reach the replies
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    import reasoning_gym  # noqa: F401  (registers the data sets)

    for line in sys.stdin:
        handler, *arguments = json.loads(line)
        try:
            reply = {"ok": HANDLERS[handler](*arguments)}
        except Exception as problem:
            reply = {"error": f"{type(problem).__name__}: {problem}"}
        replies.write(json.dumps(reply, default=str) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
