"""Tasks: where problems come from and how answers are judged."""

from whet.tasks.problem import Check, Corruption, Problem, Response, Split, Status, Step, Verdict
from whet.tasks.task import Procedural, Task, get_task, iterate, register, split_of, task_names

__all__ = [
    "Check", "Corruption", "Problem", "Procedural", "Response", "Split", "Status", "Step", "Task", "Verdict",
    "get_task", "iterate", "register", "split_of", "task_names",
]  # fmt: skip

register("chain-sum", "whet.tasks.chain_sum", "ChainSum")
register("word-problem", "whet.tasks.word_problem", "WordProblem")
register("sort", "whet.tasks.sort", "Sort")
register("mod-chain", "whet.tasks.mod_chain", "ModChain")
register("countdown", "whet.tasks.countdown", "Countdown")
register("boxes", "whet.tasks.boxes", "Boxes")
register("lists", "whet.tasks.lists", "Lists")
register("solutions", "whet.tasks.solutions", "Solutions")
register("facts", "whet.tasks.facts", "Facts")
register("edits", "whet.tasks.edits", "Edits")
register("logic", "whet.tasks.logic", "Logic")
register("clues", "whet.tasks.clues", "Clues")
register("shots", "whet.tasks.shots", "Shots")
register("noisy", "whet.tasks.noisy", "Noisy")
register("finance", "whet.tasks.finance", "Finance")
register("frozen-lake", "whet.tasks.frozen_lake", "FrozenLake")
register("travel", "whet.tasks.travel", "Travel")
register("gym", "whet.tasks.gym", "Gym")
