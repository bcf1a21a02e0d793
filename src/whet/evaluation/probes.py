"""Probes: numbers besides accuracy, for the studies whose claim is about them. Each is measured before and after, and at every
look at validation; a run that asks for none measures none.

| probe | number | what it is |
|---|---|---|
| `drift` | `drift_kl` | mean over tokens of KL(start || policy) on held-out demonstrations, in nats |
| `confident-wrong` | `confident_wrong` | of the wrong answers the share given with a mean token probability above 0.9 |
| | `confident_wrong_rate` | the same over all answers, right ones among them |

Drift is asft's (2509.23753): exact over the vocabulary, the start first, on the learnt tokens of demonstrations of the validation
split. It keeps a frozen copy of the start. Confidence in wrong answers is noisefit's (2504.03302): of greedy answers, and with
each token's probability at temperature 1.

    whet run asft --probes drift
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from whet.errors import WhetError, unknown
from whet.evaluation.matrix import Matrix
from whet.models.meter import Meter
from whet.models.packing import token_budget
from whet.models.policy import Policy
from whet.objectives.forward import Context, kl
from whet.records import Row
from whet.sources.collector import trim
from whet.tasks import Task

CERTAIN = 0.9


class Probe:
    """Measures a policy."""

    def bind(self, policy: Policy, task: Task, seed: int) -> None:
        """Once, when the policy has the run's first weights and no adapters of its own yet."""

    def measure(self, policy: Policy, greedy: Matrix) -> Mapping[str, float]:
        """Its numbers by name, from the policy or from its greedy answers; what cannot be told has none."""
        raise NotImplementedError


class Drift(Probe):
    """How far the policy's next-token distributions are from those that the run began with.

    Args:
        n: held-out demonstrations.

    Raises:
        WhetError: in `bind`, where the task has no demonstrations.
    """

    def __init__(self, n: int = 64) -> None:
        self.n = n

    def bind(self, policy: Policy, task: Task, seed: int) -> None:
        if "demonstrations" not in task.provides():
            raise WhetError(
                f"drift is measured on demonstrations, and task '{task.name}' has none: provide rows with an answer"
            )
        self.start = policy.frozen()
        held_out = [policy.format.demonstration(p) for p in task.problems("validation", self.n, seed=seed)]
        self.rows = [Row({"response": trim(sample, policy.max_length)}) for sample in held_out]

    def measure(self, policy: Policy, greedy: Matrix) -> Mapping[str, float]:
        return {"drift_kl": drift(policy, self.start, self.rows)}


@torch.no_grad()
def drift(policy: Policy, start: Policy, rows: Sequence[Row]) -> float:
    """Mean over the learnt tokens of `rows` of KL(start || policy), in nats. It spends no budget."""
    training = policy.model.training
    policy.model.eval()
    values = []
    with policy.metered(Meter()), start.metered(Meter()):
        for micro in policy.micro_batches(rows, token_budget(0, policy.device.type)):
            ctx = Context(micro, {"policy": policy, "start": start})
            before = ctx.forward("response", who="start", grad=False)
            values.append(
                ctx.forward("response", grad=False).per_token(lambda now, targets, was: kl(was, targets, now), before)
            )
    policy.model.train(training)
    return float(torch.cat(values).double().mean())


class ConfidentWrong(Probe):
    """How often a wrong answer is given with certainty.

    Args:
        certain: the mean probability of an answer's tokens above which it is.
    """

    def __init__(self, certain: float = CERTAIN) -> None:
        self.certain = certain

    def measure(self, policy: Policy, greedy: Matrix) -> Mapping[str, float]:
        return confident_wrong(greedy, self.certain)


def confident_wrong(matrix: Matrix, certain: float = CERTAIN) -> dict[str, float]:
    """Of the first answers, those that could be judged and whose tokens' probabilities are known."""
    judged = [row[0] for row in matrix.cells if not math.isnan(row[0].value) and not math.isnan(row[0].confidence)]
    wrong = [cell for cell in judged if cell.value < 1.0]
    sure = sum(cell.confidence > certain for cell in wrong)
    found = {"confident_wrong": sure / len(wrong)} if wrong else {}
    return found | ({"confident_wrong_rate": sure / len(judged)} if judged else {})


PROBES: dict[str, Callable[[], Probe]] = {"drift": Drift, "confident-wrong": ConfidentWrong}
NUMBERS = ("drift_kl", "confident_wrong", "confident_wrong_rate")


def get_probes(names: Sequence[str]) -> list[Probe]:
    """New probes by name. Raises WhetError with the nearest name."""
    for name in names:
        if name not in PROBES:
            raise unknown("probe", name, PROBES)
    return [PROBES[name]() for name in dict.fromkeys(names)]
