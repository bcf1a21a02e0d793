"""Probes: numbers besides accuracy, for the studies whose claim is about them. Each is measured before and after, and at every
look at validation but for the slow `geometry`; a run that asks for none measures none.

| probe | number | what it is |
|---|---|---|
| `drift` | `drift_kl` | mean over tokens of KL(start || policy) on held-out demonstrations, in nats |
| `confident-wrong` | `confident_wrong` | of the wrong answers the share given with a mean token probability above 0.9 |
| | `confident_wrong_rate` | the same over all answers, right ones among them |
| `sampled-drift` | `sampled_kl` | mean over tokens of KL(policy || start) on the policy's own answers, in nats |
| `spliced` | `spliced_kl` | as drift, of the policy with its sparse autoencoder spliced in |
| | `spliced_accuracy` | its greedy accuracy so |
| | `spliced_fvu` | the fraction of variance that the autoencoder leaves unexplained |
| | `tag_latents` | latents active at both <think> and </think> and nowhere else, mean over demonstrations |
| `geometry` | `geometry/...` | where the weights moved, means over the matrices of linear layers; see `whet.probes.geometry` |

Drift is asft's (2509.23753): exact over the vocabulary, the start first, on the learnt tokens of demonstrations of the validation
split. It keeps a frozen copy of the start. Confidence in wrong answers is noisefit's (2504.03302): of greedy answers, and with
each token's probability at temperature 1.

`sampled-drift` and `geometry` are off-principals' (2511.08567): the KL is exact over the vocabulary, on answers at temperature 1 to
problems of the validation split. Geometry leaves two sketches in the run's summary, which entries changed and which moved most, so
that runs can be compared.

`spliced` is resa's (2506.09967), on demonstrations of the validation split; a policy without an autoencoder has none of its numbers,
and a model without these tags no `tag_latents`.

    whet run asft --probes drift
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from whet.errors import WhetError, unknown
from whet.evaluation.matrix import Matrix, evaluate
from whet.evaluation.metrics import accuracy
from whet.models import autoencoder
from whet.models.hooks import spliced
from whet.models.meter import Meter
from whet.models.packing import Batch, token_budget
from whet.models.policy import Policy
from whet.objectives.forward import Context, kl
from whet.probes.agreement import sketch
from whet.probes.geometry import MEASURES, mean, measure, most_moved, pairs, unchanged
from whet.records import Row
from whet.sampling.sampler import Request, SamplingSettings
from whet.seeds import seed_for
from whet.sources.collector import trim
from whet.tasks import Task

CERTAIN = 0.9
DENSITY = 0.2
GEOMETRY = {name: f"geometry/{name}" for name in MEASURES}


class Probe:
    """Measures a policy."""

    def bind(self, policy: Policy, task: Task, seed: int) -> None:
        """Once, when the policy has the run's first weights and no adapters of its own yet."""

    looks = True  # whether it is measured at each look at validation, too

    def measure(self, policy: Policy, greedy: Matrix) -> Mapping[str, float]:
        """Its numbers by name, from the policy or from its greedy answers; what cannot be told has none."""
        raise NotImplementedError

    def sketches(self, policy: Policy) -> Mapping[str, str]:
        """What studies compare between runs, in short texts: of the run's end."""
        return {}


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
def drift(policy: Policy, start: Policy, rows: Sequence[Row], *, first: str = "start") -> float:
    """Mean over the learnt tokens of `rows` of KL(start || policy), in nats; of KL(policy || start) where `policy` is `first`. It
    spends no budget."""
    training = policy.model.training
    policy.model.eval()
    values = []
    with policy.metered(Meter()), start.metered(Meter()):
        for micro in policy.micro_batches(rows, token_budget(0, policy.device.type)):
            ctx = Context(micro, {"policy": policy, "start": start})
            before = ctx.forward("response", who="start", grad=False)
            values.append(
                ctx.forward("response", grad=False).per_token(_from_start if first == "start" else kl, before)
            )
    policy.model.train(training)
    return float(torch.cat(values).double().mean())


def _from_start(now: Tensor, targets: Tensor, was: Tensor) -> Tensor:
    return kl(was, targets, now)


class Spliced(Drift):
    """What is left of a policy with its sparse autoencoder spliced in, and what the autoencoder is worth."""

    def bind(self, policy: Policy, task: Task, seed: int) -> None:
        super().bind(policy, task, seed)
        self.task, self.problems = task, task.problems("validation", self.n, seed=seed)

    @torch.no_grad()
    def measure(self, policy: Policy, greedy: Matrix) -> Mapping[str, float]:
        if autoencoder.NAME not in policy.modules:
            return {}
        with policy.metered(Meter()):
            with spliced(policy, autoencoder.coded(policy)):
                found = {"spliced_kl": drift(policy, self.start, self.rows)}
                answered = evaluate(policy, self.task, self.problems)
            return {**found, "spliced_accuracy": float(accuracy(answered)["value"]), **self._codes(policy)}

    def _codes(self, policy: Policy) -> dict[str, float]:
        sae = autoencoder.autoencoder(policy)
        batches = [Batch.of([row["response"]], policy.device) for row in self.rows]
        outputs = [autoencoder.outputs(policy, batch, sae.block).to(sae.bias.dtype) for batch in batches]
        whole = torch.cat(outputs)
        found = {"spliced_fvu": float(autoencoder.fvu(whole, sae(whole)))}
        if policy.format.style == "tags":
            tags = torch.tensor(
                [i for tag in ("<think>", "</think>") for i in policy.format.encode(tag)], device=policy.device
            )
            marked = [torch.isin(batch.ids[0], tags) for batch in batches]
            counts = [autoencoder.exclusive(sae.codes(x), at).sum() for x, at in zip(outputs, marked, strict=True)]
            found["tag_latents"] = float(torch.stack(counts).double().mean())
        return found


class SampledDrift(Probe):
    """How far the policy is from its start where it goes itself.

    Args:
        n: problems of the validation split, an answer each; the seeds are the same at each look.
    """

    def __init__(self, n: int = 32) -> None:
        self.n = n

    def bind(self, policy: Policy, task: Task, seed: int) -> None:
        self.start = policy.frozen()
        settings = SamplingSettings(task.max_answer_tokens(), temperature=1.0)
        self.requests = [
            Request(policy.format.prompt(p), [seed_for(seed, "sampled-drift", p.id)], settings, p.id)
            for p in task.problems("validation", self.n, seed=seed)
        ]

    def measure(self, policy: Policy, greedy: Matrix) -> Mapping[str, float]:
        with policy.metered(Meter()):
            answers = policy.sample(self.requests)
        rows = [Row({"response": sample}) for samples in answers for sample in samples]
        return {"sampled_kl": drift(policy, self.start, rows, first="policy")}


class Geometry(Probe):
    """Where the weights moved since the run began. Adapters are merged first, on a copy.

    Args:
        rank, density: as `whet.probes.geometry.measure` takes them.
    """

    looks = False

    def __init__(self, rank: float = 0, density: float = DENSITY) -> None:
        self.rank, self.density = rank, density

    def bind(self, policy: Policy, task: Task, seed: int) -> None:
        self.start, self.config = merged(policy), policy.model.config.to_dict()

    def measure(self, policy: Policy, greedy: Matrix) -> Mapping[str, float]:
        now = merged(policy)
        if all(torch.equal(weight, now[name]) for name, weight in self.start.items()):
            return {}
        found = mean(measure(self.start, now, rank=self.rank, density=self.density, config=self.config))
        return {name: value for of, name in GEOMETRY.items() if (value := found[of]) is not None}

    def sketches(self, policy: Policy) -> Mapping[str, str]:
        found = {name: (a.float(), b.float()) for name, a, b in pairs(self.start, merged(policy), self.config)}
        return {
            "changed": sketch({n: ~unchanged(a, b) for n, (a, b) in found.items()}),
            "moved most": sketch(
                {n: most_moved(a, b, max(1, round(self.density * a.numel()))) for n, (a, b) in found.items()}
            ),
        }


def merged(policy: Policy) -> dict[str, Tensor]:
    """Copies of all weights as they act: adapters added."""
    model = policy.model if policy.peft is None else copy.deepcopy(policy.peft).merge_and_unload()
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


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


PROBES: dict[str, Callable[[], Probe]] = {"drift": Drift, "confident-wrong": ConfidentWrong, "sampled-drift": SampledDrift,
                                          "geometry": Geometry, "spliced": Spliced}  # fmt: skip
NUMBERS = (
    "drift_kl",
    "confident_wrong",
    "confident_wrong_rate",
    "sampled_kl",
    "spliced_kl",
    "spliced_accuracy",
    "spliced_fvu",
    "tag_latents",
)


def get_probes(names: Sequence[str]) -> list[Probe]:
    """New probes by name. Raises WhetError with the nearest name."""
    for name in names:
        if name not in PROBES:
            raise unknown("probe", name, PROBES)
    return [PROBES[name]() for name in dict.fromkeys(names)]
