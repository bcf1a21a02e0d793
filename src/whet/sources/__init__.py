"""Sources: where rows come from."""

from whet.sources.answering import Answering
from whet.sources.attempts import Attempt, Attempts, error_cause, error_type, feedback_text
from whet.sources.bandit import Bandit
from whet.sources.buffers import Buffer, Demonstrated
from whet.sources.choices import ByScore, Choices, Justify
from whet.sources.collector import Collector, Demonstrations, Scope, Stored, calibration_rows
from whet.sources.conditioning import Conditioned
from whet.sources.curation import Curated, Filter, Subset
from whet.sources.curriculum import Ordered, category_of
from whet.sources.distilled import Distilled
from whet.sources.documents import Documents
from whet.sources.filters import Filtered, answered, pass_rate, solvable
from whet.sources.gate import DropDead, Gate, groups_of
from whet.sources.guided import Guidances, Guided
from whet.sources.plans import Member, Plan, PrefixLength, WithDemonstration, ask_members
from whet.sources.problems import Mixture, Part, Problems, Uniform
from whet.sources.rollouts import (
    Bootstrapped,
    Pairs,
    Preferences,
    Rollouts,
    WithGreedy,
    ask,
    distinct,
    judge,
    judge_all,
    verdicts,
)
from whet.sources.teachers import ModelTeacher, Procedural, Question, Teacher, get_teacher, user
from whet.sources.temperature import EntropyTarget

__all__ = [
    "Answering",
    "Attempt",
    "Attempts",
    "Bandit",
    "Bootstrapped",
    "Buffer",
    "ByScore",
    "Choices",
    "Collector",
    "Conditioned",
    "Curated",
    "Demonstrated",
    "Demonstrations",
    "Distilled",
    "Documents",
    "DropDead",
    "EntropyTarget",
    "Filter",
    "Filtered",
    "Gate",
    "Guidances",
    "Guided",
    "Justify",
    "Member",
    "Mixture",
    "ModelTeacher",
    "Ordered",
    "Pairs",
    "Part",
    "Plan",
    "Preferences",
    "PrefixLength",
    "Problems",
    "Procedural",
    "Question",
    "Rollouts",
    "Scope",
    "Stored",
    "Subset",
    "Teacher",
    "Uniform",
    "WithDemonstration",
    "WithGreedy",
    "answered",
    "ask",
    "ask_members",
    "calibration_rows",
    "category_of",
    "distinct",
    "error_cause",
    "error_type",
    "feedback_text",
    "get_teacher",
    "groups_of",
    "judge",
    "judge_all",
    "pass_rate",
    "solvable",
    "user",
    "verdicts",
]  # fmt: skip
