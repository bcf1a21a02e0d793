"""Sources: where rows come from."""

from whet.sources.answering import Answering
from whet.sources.attempts import Attempt, Attempts, error_cause, error_type, feedback_text
from whet.sources.choices import ByScore, Choices, Justify
from whet.sources.collector import Collector, Demonstrations, Scope, Stored
from whet.sources.conditioning import Conditioned
from whet.sources.curation import Curated, Filter, Subset
from whet.sources.documents import Documents
from whet.sources.gate import DropDead, Gate, groups_of
from whet.sources.guided import Guidances, Guided
from whet.sources.problems import Mixture, Part, Problems, Uniform
from whet.sources.rollouts import Bootstrapped, Pairs, Preferences, Rollouts, ask, distinct, judge, judge_all, verdicts
from whet.sources.teachers import ModelTeacher, Procedural, Question, Teacher, get_teacher, user

__all__ = [
    "Answering", "Attempt", "Attempts", "Bootstrapped", "ByScore", "Choices", "Collector", "Conditioned",
    "Curated",    "Demonstrations", "Documents", "DropDead", "Filter", "Gate", "Guidances", "Guided", "Justify", "Mixture", "ModelTeacher", "Pairs", "Part",
    "Preferences", "Problems", "Procedural", "Question", "Rollouts", "Scope", "Stored", "Subset", "Teacher", "Uniform", "ask",
    "distinct", "error_cause", "error_type", "feedback_text", "get_teacher", "groups_of", "judge", "judge_all",
    "user", "verdicts",
]  # fmt: skip
