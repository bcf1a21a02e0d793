"""Objectives: a sum of weighted terms over shared forwards."""

from whet.objectives.divergence import entropy_bonus, forward_kl, kl_to_reference, reverse_kl
from whet.objectives.forward import Context, Forward
from whet.objectives.likelihood import dft, nll
from whet.objectives.objective import Objective, Term, as_objective, count
from whet.objectives.policy_gradient import policy_gradient
from whet.objectives.preference import dpo
from whet.objectives.schedule import Ramp
from whet.objectives.value import value_head, value_loss, values
from whet.objectives.views import Clean, Corrupt, Embeds, Hide, Noise, View

__all__ = [
    "Clean",
    "Context",
    "Corrupt",
    "Embeds",
    "Forward",
    "Hide",
    "Noise",
    "Objective",
    "Ramp",
    "Term",
    "View",
    "as_objective",
    "count",
    "dft",
    "dpo",
    "entropy_bonus",
    "forward_kl",
    "kl_to_reference",
    "nll",
    "policy_gradient",
    "reverse_kl",
    "value_head",
    "value_loss",
    "values",
]
