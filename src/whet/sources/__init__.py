"""Sources: where rows come from."""

from whet.sources.collector import Collector, Demonstrations, Scope, Stored
from whet.sources.documents import Documents
from whet.sources.gate import DropDead, Gate, groups_of
from whet.sources.problems import Mixture, Part, Problems, Uniform
from whet.sources.rollouts import Bootstrapped, Pairs, Preferences, Rollouts, ask, judge

__all__ = [
    "Bootstrapped", "Collector", "Demonstrations", "Documents", "DropDead", "Gate", "Mixture", "Pairs", "Part",
    "Preferences", "Problems", "Rollouts", "Scope", "Stored", "Uniform", "ask", "groups_of", "judge",
]  # fmt: skip
