"""Ways to answer that take more than one turn."""

from whet.decoding.exploring import Explore, Following
from whet.decoding.refining import Critic, changes, oracle, random_feedback, refine
from whet.decoding.rethinking import Mistake, Rethinking, error_set
from whet.decoding.revising import revise

__all__ = [
    "Critic", "Explore", "Following", "Mistake", "Rethinking", "changes", "error_set", "oracle", "random_feedback", "refine", "revise",
]  # fmt: skip
