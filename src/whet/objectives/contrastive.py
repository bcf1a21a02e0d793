"""Contrast between an annotated chain and the sampled one (CARFT, 2508.15868), over all rows of the optimizer batch.

    z   = sum_t a_t u_t        a = softmax_t V_t over the chain's tokens        u_t, V_t from a two-layer value head
    l_i = -log  exp(min(cos(z1_i, z2_i), cap) / tau)  /  sum_j exp(cos(z1_i, z2_j) / tau)

z1 is the annotated chain under the policy that sampled, written into `row.vectors` and constant; z2 is the sampled chain,
with its gradient. u_t is read off the state right after token t, so that an answer's last token has none: it is the end
token, or where the answer was cut off, a token whose state no forward holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from whet.errors import WhetError, unknown
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.objectives.forward import Context, Forward, run
from whet.objectives.objective import Meeting
from whet.objectives.value import MlpHead
from whet.objectives.views import Clean, drawn
from whet.records import Row, Sample

SIGNALS = ("positive", "negative")
POOLS = ("value", "mean")
CHAIN = "annotation"  # in `row.vectors`: z1 of the annotated chain
REST = "annotation_rest"  # and of its tokens that the answer does not share
COMMON = "common"  # in `per_token`: tokens that chain and answer share, in order
Choice = Callable[[Sample], Tensor]  # (length,) bool, which tokens of a sample


# -- parts -------------------------------------------------------------------------------------------------------------
def pool(states: Tensor, scores: Tensor | None, sequence: Tensor, number: int) -> Tensor:
    """(number, D) of (M, D) states the mean in each sequence, weighted by the softmax of its scores (M,); without scores
    the plain mean, and zero where a sequence has no state."""
    weights = states.new_ones(len(states))
    if scores is not None:
        top = scores.new_full((number,), -torch.inf).scatter_reduce(0, sequence, scores.detach(), "amax")
        weights = (scores - top[sequence]).exp()
    total = states.new_zeros(number).index_add(0, sequence, weights)
    weighted = (weights / total[sequence])[:, None] * states
    return states.new_zeros(number, states.shape[1]).index_add(0, sequence, weighted)


def info_nce(
    anchor: Tensor, other: Tensor, against: Sequence[tuple[Tensor, Tensor]], among: Tensor, temperature: float = 0.2,
    cap: float = 0.9,
) -> Tensor:  # fmt: skip
    """(B,) -log exp(min(cos(anchor_i, other_i), cap) / tau) / sum over (q, k) and over j of exp(cos(q_i, k_j) / tau).

    Args:
        anchor, other: (B, D) the pairs; the numerator has no gradient above the cap.
        against: queries q and keys k, (B, D) each.
        among: (B,) bool, the j that are summed over.
    """
    paired = (normalize(anchor, dim=-1) * normalize(other, dim=-1)).sum(-1)
    cosines = [normalize(q, dim=-1) @ normalize(k, dim=-1).T for q, k in against]
    logits = torch.cat([c.masked_fill(~among, -torch.inf) for c in cosines], 1) / temperature
    return logits.logsumexp(1) - paired.clamp(max=cap) / temperature


def common(a: Sequence[str], b: Sequence[str]) -> tuple[list[bool], list[bool]]:
    """Which items of each belong to a longest common subsequence of both."""
    lengths = np.zeros((len(a) + 1, len(b) + 1), dtype=np.int32)
    right = np.array(list(b), dtype=object)
    for i, item in enumerate(a):
        step = np.maximum(lengths[i, 1:], lengths[i, :-1] + (right == item))
        lengths[i + 1, 1:] = np.maximum.accumulate(step) if len(b) else 0
    found, other = [False] * len(a), [False] * len(b)
    i, j = len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            found[i] = other[j] = True
        elif lengths[i - 1, j] >= lengths[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return found, other


def embedded_places(sample: Sample) -> Tensor:
    """(n,) the places in a sample of the learnt tokens that have an embedding: all but the last."""
    return sample.learn_mask.nonzero()[:-1, 0]


# -- embeddings --------------------------------------------------------------------------------------------------------
def embed(
    forward: Forward, choose: Choice | None = None, by: str = "value", drop: float = 0.0, seed: int = 0
) -> Tensor:
    """(B, D) the embedding z of each sample's response; zero where nothing is chosen.

    Args:
        choose: sample -> (length,) bool, which tokens; by default all.
        by: `value` weighs tokens by the softmax of V, `mean` alike.
        drop: probability of leaving a token out, drawn from (seed, problem, rollout); never all of a sample's.
    """
    batch, head = forward.batch, dict(forward.policy.modules.items()).get("value")
    if not isinstance(head, MlpHead):
        raise WhetError('embeddings of chains are read off a two-layer value head: modules={"value": mlp_value_head}')
    token = (batch.sequence[1:] == batch.sequence[:-1]).nonzero()[:, 0]  # its state is the one before its successor
    if choose is not None:
        token = token[torch.cat([choose(s)[s.learn_mask] for s in batch.samples]).to(token.device)[token]]
    if drop:
        draws = drawn(batch, seed, lambda g, n: torch.rand(n, generator=g), "contrast")
        kept = draws[batch.sequence[token], batch.position[token]] >= drop
        left = torch.zeros(len(batch.samples), dtype=torch.bool, device=token.device)
        left[batch.sequence[token[kept]]] = True
        token = token[kept | ~left[batch.sequence[token]]]
    embedded = head.embed(forward.hidden[token + 1].to(head.out.weight.dtype))
    scores = head.out(embedded.relu())[:, 0] if by == "value" else None
    return pool(embedded, scores, batch.sequence[token], len(batch.samples))


@torch.no_grad()
def embeddings(
    policy: Policy, samples: Sequence[Sample], choose: Sequence[Choice | None] = (None,), *, by: str = "value",
    drop: float = 0.0, seed: int = 0, token_budget: int = 8192,
) -> list[list[Tensor]]:  # fmt: skip
    """For each sample its embedding (D,) under each choice of tokens, by the policy of now, without a gradient and on the
    CPU; the ranks share the work."""

    def own(part: Sequence[Sample]) -> list[list[Tensor]]:
        places = {id(sample): i for i, sample in enumerate(part)}
        found: list[list[Tensor]] = [[] for _ in part]
        for rows in policy.micro_batches([Row({"response": s}) for s in part], token_budget):
            batch = Batch.of([row["response"] for row in rows], policy.device)
            forward = run(policy, batch, Clean(), 0, 1.0)
            for chosen in choose:
                for sample, z in zip(batch.samples, embed(forward, chosen, by, drop, seed).cpu(), strict=True):
                    found[places[id(sample)]].append(z)
        return found

    return policy.ranks.map(own, samples, cost=len)


def mark_common(one: Sample, other: Sample, policy: Policy) -> None:
    """Write into `per_token["common"]` of two samples which learnt tokens belong to their longest common subsequence, of
    decoded tokens; those without an embedding are left out."""
    places = [embedded_places(s) for s in (one, other)]
    words = [
        [policy.format.decode([s.ids[p]]) for p in at.tolist()] for s, at in zip((one, other), places, strict=True)
    ]
    for sample, at, shared in zip((one, other), places, common(*words), strict=True):
        sample.per_token[COMMON] = torch.zeros(len(sample), dtype=torch.bool)
        sample.per_token[COMMON][at] = torch.tensor(shared, dtype=torch.bool)


# -- the term ----------------------------------------------------------------------------------------------------------
@dataclass
class Contrast(Meeting):
    """The mean of l_i over the rows that it learns from.

    Attributes:
        signal: `positive`, on right answers: the sampled chain is drawn to the annotated one, against the other rows'.
            `negative`, on wrong ones that share tokens with the annotation (their longest common subsequence): the shared
            part is drawn to the rest of the annotation, against the rows' shared parts and the rest of their own tokens.
        temperature: tau of the cosines.
        cap: of the numerator's cosine, above which a pair is near enough.
        pooling: `value` or `mean`.
        drop: probability of leaving a token out of a chain's embedding.
        detach_negatives: whether only the numerator has a gradient, as in the released code.
        mask_broadcast: sum l_i over all rows, right or not, wherever one is right, as in the released code.
    """

    signal: str = "positive"
    temperature: float = 0.2
    cap: float = 0.9
    pooling: str = "value"
    drop: float = 0.0
    detach_negatives: bool = False
    mask_broadcast: bool = False
    normalise: str = "chosen rows"
    name: str = ""

    def __post_init__(self) -> None:
        for what, value, known in (("signal", self.signal, SIGNALS), ("pooling", self.pooling, POOLS)):
            if value not in known:
                raise unknown(what, value, known)
        if self.temperature <= 0:
            raise WhetError(f"contrast: temperature must be above 0, not {self.temperature:g}")
        if not 0 <= self.drop < 1:
            raise WhetError(f"contrast: drop is a share from 0 to below 1, not {self.drop:g}")
        if self.mask_broadcast and self.signal != "positive":
            raise WhetError("contrast: mask_broadcast is of the released positive signal; set signal=positive")
        self.name = self.name or f"contrast_{self.signal}"

    def chosen(self, row: Row) -> bool:
        """Whether the row's l_i is learnt. Known before any forward, so that the count is."""
        sample, accuracy = row["response"], row.numbers["accuracy"]
        if self.signal == "positive":
            return accuracy > 0.5 and _has(row, CHAIN) and len(embedded_places(sample)) > 0
        if not accuracy <= 0.5 or not _has(row, REST):  # NaN could not be judged
            return False
        shared = sample.per_token[COMMON][embedded_places(sample)]
        return bool(shared.any()) and not bool(shared.all())

    def count(self, rows: Sequence[Row], budget: int = 0) -> float:
        """The rows chosen; 0 for a lone row, which has nothing to be told apart from."""
        number = sum(map(self.chosen, rows)) if len(rows) > 1 else 0
        return float(bool(number) if self.mask_broadcast else number)

    def active(self, rows: Sequence[Row]) -> bool:
        return self.count(rows) > 0

    def represent(self, ctx: Context) -> Tensor:
        """z2; of the negative signal z2 and z3 side by side."""
        forward, how = ctx.forward("response"), (self.pooling, self.drop, ctx.seed)
        if self.signal == "positive":
            found = embed(forward, None, *how)
        else:
            parts = (lambda s: s.per_token[COMMON], lambda s: ~s.per_token[COMMON])
            found = torch.cat([embed(forward, part, *how) for part in parts], 1)
        chosen = [self.chosen(row) for row in ctx.rows]
        near = torch.cosine_similarity(self._annotated(ctx.rows, found), found[:, : self._width(found)], dim=-1)
        ctx.log(f"{self.name}/cosine", near[torch.tensor(chosen, device=near.device)])
        return found

    def losses(self, states: Tensor, rows: Sequence[Row]) -> Tensor:
        chosen = torch.tensor([self.chosen(row) for row in rows], device=states.device)
        if not bool(chosen.any()):
            return 0.0 * states.sum(1)
        first, z = self._annotated(rows, states), states[:, : self._width(states)]
        held = states.detach() if self.detach_negatives else states
        if self.signal == "positive":
            among = torch.tensor([len(embedded_places(row["response"])) > 0 for row in rows], device=states.device)
            found = info_nce(first, z, [(first, held)], among, self.temperature, self.cap)
        else:
            shared, rest = held.chunk(2, 1)
            found = info_nce(first, z, [(shared, shared), (shared, rest)], chosen, self.temperature, self.cap)
        return found if self.mask_broadcast else torch.where(chosen, found, 0.0)

    def _width(self, states: Tensor) -> int:
        return states.shape[1] // (1 if self.signal == "positive" else 2)

    def _annotated(self, rows: Sequence[Row], states: Tensor) -> Tensor:
        """(b, D) z1 of each row; zero where it has none."""
        none = states.new_zeros(self._width(states))
        name = CHAIN if self.signal == "positive" else REST
        return torch.stack([row.vectors.get(name, none).to(none) for row in rows])


def _has(row: Row, name: str) -> bool:
    """Whether its annotation has such an embedding; that of no token is zero."""
    return name in row.vectors and bool(row.vectors[name].any())


contrast = Contrast
