"""LocFT-BF (2509.22072): model editing by plain fine-tuning, breadth-first, of one matrix.

    breadth-first   for each epoch, for each mini-batch of the shuffled requests:   one step
    depth-first     for each mini-batch of the requests:                            steps until it holds, and never again

    L = mean_i l_i,  l_i = (1 / T_i) sum_t -log p(y_it | x_i, y_i<t)      over the target's tokens and its end token

A batch with L < `least` is left alone, weights and moments; breadth-first ends after an epoch whose mean L is below it. Depth-first
(`order=depth`, the pipeline that the paper corrects) begins the moments anew for each batch. At equal `batch` and `epochs` both take at
most as many steps: what depth-first spends on a request at once, breadth-first spends in as many visits. All requests must be there
at the start: a stream would have to be buffered.

What moves is one module of one block: `layer` and `module` are settings to be searched (`--sweep layer=0,1,2,3`), by default down two
thirds up. The released choices: 22 down of Llama-3-8B (32 blocks), 6 down of Qwen2.5-7B (28), the whole 23rd of Mistral-7B (32), rates
5e-4, 5e-4 and 5e-5, batch 100, 25 epochs. `module=all` leaves it to `--weights`.

The optimizer is Adam without decay, warm-up or clipping. The mark of the format stands where released code puts a space before the
target, and a response ends by its end token: none is cut at a full stop. The task `edits` measures reliability, generalisation (its
accuracy) and locality; the paper's capability is accuracy on `--others`.

    whet run locft-bf
    whet run locft-bf limit=300 --task edits.jsonl --validation some-reworded.jsonl --test reworded.jsonl --verifier normalized
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from whet.errors import WhetError, unknown
from whet.evaluation.matrix import Matrix, evaluate
from whet.evaluation.metrics import accuracy
from whet.evaluation.probes import Probe
from whet.models.meter import Meter
from whet.models.policy import Policy
from whet.objectives import nll
from whet.recipes.recipe import Recipe, recipe
from whet.sources import Demonstrations, Uniform
from whet.sources.problems import epochs as walk
from whet.tasks import Problem, Task
from whet.training.optimizer import AdamW, Rate
from whet.training.stage import Stage, Update
from whet.weights import choices

ORDERS = ("breadth", "depth")


class Requests(Uniform):
    """The first `limit` problems of the train split, in an order drawn anew each epoch; no batch reaches over an epoch's end.

    It is done once the mean loss of an epoch's steps is below `least`.
    """

    def __init__(self, limit: int, least: float) -> None:
        super().__init__(limit=limit)
        self.least = least
        self.losses: list[float] = []

    def bind(self, task: Task, seed: int) -> None:
        super().bind(task, seed)
        if self.size < self.limit:
            raise WhetError(f"task '{task.name}' has {self.size} requests to learn, and {self.limit} were asked for: give "
                            f"limit={self.size}")  # fmt: skip

    def draw(self, n: int) -> list[Problem]:
        return super().draw(min(n, self.size - self.cursor % self.size))

    def learnt(self, found: Mapping[str, float]) -> None:
        self.losses.append(found["loss/nll"])
        if self.cursor % self.size == 0:
            self.done = sum(self.losses) / len(self.losses) < self.least
            self.losses = []

    def first_epoch(self) -> list[Problem]:
        """Its requests in the order in which they came; none where nothing was drawn yet."""
        if not self.cursor or self._finite is None:
            return []
        return [self._finite[i] for i in walk(self.size, 0, self.size, self._seed)]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "losses": self.losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.losses = list(state["losses"])


class Recency(Probe):
    """Reliability of the requests that came in the first and in the last quarter of a depth-first run, after all of them."""

    looks = False

    def __init__(self, requests: Requests) -> None:
        self.requests = requests

    def bind(self, policy: Policy, task: Task, seed: int) -> None:
        self.task = task

    def measure(self, policy: Policy, greedy: Matrix) -> Mapping[str, float]:
        came = self.requests.first_epoch()
        quarter = math.ceil(len(came) / 4)
        parts = {"reliability_early": came[:quarter], "reliability_late": came[-quarter:]} if came else {}
        with policy.metered(Meter()):
            return {name: float(accuracy(evaluate(policy, self.task, part))["value"]) for name, part in parts.items()}


@recipe(paper="locft-bf", task="edits")
def locft_bf(
    order: str = "breadth", limit: int = 100, batch: int = 25, epochs: int = 60, layer: int | None = None,
    module: str = "down", least: float = 0.01, lr: float | Rate = Rate(small=3e-3, paper=5e-4),
) -> Recipe:  # fmt: skip
    """LocFT-BF (2509.22072): edits of what a model knows, in epochs over all of them, by one matrix.

    Args:
        order: breadth (epochs over all requests), or as a control depth (each batch to its end before the next).
        limit: how many requests: the first so many problems of the train split.
        batch: requests a step.
        epochs: most visits of a request; depth-first, most steps on a batch.
        layer: the block, from 0, or from the last one with -1; by default two thirds up.
        module: q, k, v, o, gate, up, down, mlp or layer of that block; all leaves it to --weights.
        least: a batch whose loss is below is left alone.
        lr: learning rate; by default 3e-3 below 50 M parameters and 5e-4 above.
    """
    if order not in ORDERS:
        raise unknown("order of edits", order, ORDERS)
    if min(limit, batch, epochs) < 1 or least < 0:
        raise WhetError(f"locft-bf: limit, batch and epochs are 1 or more and least 0 or more, not {limit}, {batch}, {epochs} and "
                        f"{least:g}")  # fmt: skip
    deep = order == "depth"
    requests, batches = Requests(limit, least), math.ceil(limit / batch)
    update = Update(
        nll(normalise="sequence"), optimizer=AdamW(lr=lr, betas=(0.9, 0.999)), clip=0.0, least=least,
        epochs=epochs if deep else 1, fresh=deep,
    )  # fmt: skip
    stage = Stage(problems=requests, collect=Demonstrations(rationale=False), updates=[update],
                  steps=batches if deep else batches * epochs, batch=batch, name=f"{order}-first")  # fmt: skip
    made = Recipe([stage], probes=[Recency(requests)] if deep else [])
    return made if module == "all" else made.moving(choices.location(layer, module))
