"""Contrast between an annotated chain and the sampled one (CARFT, 2508.15868), over all rows of the optimizer batch.

    z   = sum_t a_t u_t        a = softmax_t V_t over the chain's tokens        u_t, V_t from a two-layer value head
    l_i = -log  exp(min(cos(z1_i, z2_i), cap) / tau)  /  sum_j exp(cos(z1_i, z2_j) / tau)

z1 is the annotated chain under the policy that sampled, written into `row.vectors` and constant; z2 is the sampled chain,
with its gradient. u_t is read off the state right after token t, so that an answer's last token has none: it is the end
token, or where the answer was cut off, a token whose state no forward holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whet.errors import WhetError, unknown
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.objectives.forward import Context, Forward, run
from whet.objectives.objective import Meeting
from whet.objectives.views import Clean, drawn
from whet.records import Row, Sample
from whet.tasks.alignment import common

CHAIN = "annotation"  # in `row.vectors`: z1 of the annotated chain
REST = "annotation_rest"  # and of its tokens that the answer does not share
SHARED, OWN = "shared", "own"  # in `per_token`: the tokens that chain and answer share, in order, and the others
WHOLE = ""  # all tokens that have an embedding
SIGNALS = {"positive": (CHAIN, (WHOLE,)), "negative": (REST, (SHARED, OWN))}  # z1, and the parts of the answer
POOLS = ("value", "mean")


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
    anchor: Tensor, other: Tensor, query: Tensor, keys: Sequence[Tensor], among: Tensor, temperature: float = 0.2,
    cap: float = 0.9,
) -> Tensor:  # fmt: skip
    """(B,) -log exp(min(cos(anchor_i, other_i), cap) / tau) / sum over keys k and over j of exp(cos(query_i, k_j) / tau).

    Args:
        anchor, other: (B, D) the pairs; the numerator has no gradient above the cap.
        query, keys: (B, D) each.
        among: (B,) bool, the j that are summed over.
    """
    paired = torch.cosine_similarity(anchor, other, dim=-1)
    cosines = [torch.cosine_similarity(query[:, None], key[None], dim=-1) for key in keys]
    logits = torch.cat([c.masked_fill(~among, -torch.inf) for c in cosines], 1) / temperature
    return logits.logsumexp(1) - paired.clamp(max=cap) / temperature


def embedded_places(sample: Sample) -> Tensor:
    """(n,) the places in a sample of the learnt tokens that have an embedding: all but the last."""
    return sample.learn_mask.nonzero()[:-1, 0]


def mark_shared(one: Sample, other: Sample, policy: Policy) -> None:
    """Write into `per_token` of two samples which tokens with an embedding belong to their longest common subsequence, of
    decoded tokens (`shared`), and which do not (`own`)."""
    words = [[policy.format.decode([s.ids[p]]) for p in embedded_places(s).tolist()] for s in (one, other)]
    for sample, found in zip((one, other), common(*words), strict=True):
        at = embedded_places(sample)
        shared, own = (torch.zeros(len(sample), dtype=torch.bool) for _ in range(2))
        shared[at] = torch.tensor(found, dtype=torch.bool)
        own[at] = ~shared[at]
        sample.per_token |= {SHARED: shared, OWN: own}


# -- embeddings --------------------------------------------------------------------------------------------------------
def embed(forward: Forward, part: str = WHOLE, by: str = "value", drop: float = 0.0, seed: int = 0) -> Tensor:
    """(B, D) the embedding z of each sample's response; zero where it has no token of the part.

    Args:
        part: the name in `per_token` of the tokens that count; by default all do.
        by: `value` weighs tokens by the softmax of V, `mean` alike.
        drop: probability of leaving a token out, drawn from (seed, problem, rollout); never all of a sample's.
    """
    batch, head = forward.batch, dict(forward.policy.modules.items()).get("value")
    if not isinstance(head, nn.Sequential):
        raise WhetError("embeddings of chains are read off a value head with a hidden layer: value_head(policy, width)")
    token = (batch.sequence[1:] == batch.sequence[:-1]).nonzero()[:, 0]  # its state is the one before its successor
    if part:
        token = token[forward.values(part)[token] > 0]
    sequence = batch.sequence[token]
    if drop:
        draws = drawn(batch, seed, lambda g, n: torch.rand(n, generator=g), "contrast")[sequence, batch.position[token]]
        greatest = draws.new_zeros(len(batch.samples)).scatter_reduce(0, sequence, draws, "amax")
        kept = draws >= greatest.clamp(max=drop)[sequence]
        token, sequence = token[kept], sequence[kept]
    first, relu, last = head
    states = first(forward.hidden[token + 1].to(next(head.parameters()).dtype))
    return pool(states, last(relu(states))[:, 0] if by == "value" else None, sequence, len(batch.samples))


@torch.no_grad()
def embeddings(
    policy: Policy, samples: Sequence[Sample], parts: Mapping[str, str], *, by: str = "value", drop: float = 0.0, seed: int = 0,
    token_budget: int = 8192,
) -> list[dict[str, Tensor]]:  # fmt: skip
    """For each sample, by name, the embedding (D,) of each part, by the policy of now, without a gradient and on the CPU; the
    ranks share the work."""

    def own(share: Sequence[Sample]) -> list[dict[str, Tensor]]:
        found: dict[int, dict[str, Tensor]] = {}
        for rows in policy.micro_batches([Row({"response": s}) for s in share], token_budget):
            batch = Batch.of([row["response"] for row in rows], policy.device)
            forward = run(policy, batch, Clean(), 0, 1.0)
            each = {name: embed(forward, part, by, drop, seed).cpu() for name, part in parts.items()}
            found |= {id(sample): {name: z[i] for name, z in each.items()} for i, sample in enumerate(batch.samples)}
        return [found[id(sample)] for sample in share]

    return policy.ranks.map(own, samples, cost=len)


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
        if self.temperature <= 0 or not 0 <= self.drop < 1:
            raise WhetError(f"contrast: temperature must be above 0 and drop a share from 0 to below 1, not "
                            f"{self.temperature:g} and {self.drop:g}")  # fmt: skip
        if self.mask_broadcast and self.signal != "positive":
            raise WhetError("contrast: mask_broadcast is of the released positive signal; set signal=positive")
        self.name = self.name or f"contrast_{self.signal}"
        self.anchor, self.parts = SIGNALS[self.signal]

    def chosen(self, row: Row) -> bool:
        """Whether the row's l_i is learnt. Known before any forward, so that the count is."""
        sample, accuracy = row["response"], row.numbers["accuracy"]
        if self.anchor not in row.vectors or not bool(row.vectors[self.anchor].any()):  # that of no token is zero
            return False
        if self.signal == "positive":
            return accuracy > 0.5 and len(embedded_places(sample)) > 0
        at = embedded_places(sample)
        return accuracy <= 0.5 and all(bool(sample.per_token[part][at].any()) for part in self.parts)

    def count(self, rows: Sequence[Row], budget: int = 0) -> float:
        """The rows chosen; 0 for a lone row, which has nothing to be told apart from."""
        number = sum(map(self.chosen, rows)) if len(rows) > 1 else 0
        return float(bool(number) if self.mask_broadcast else number)

    def represent(self, ctx: Context) -> Tensor:
        """The embeddings of the answer's parts, side by side."""
        forward = ctx.forward("response")
        found = [embed(forward, part, self.pooling, self.drop, ctx.seed) for part in self.parts]
        near = torch.cosine_similarity(self._annotated(ctx.rows, found[0]), found[0], dim=-1)
        ctx.log(f"{self.name}/cosine", near[self._mask(ctx.rows, near)])
        return torch.cat(found, 1)

    def losses(self, states: Tensor, rows: Sequence[Row]) -> Tensor:
        chosen = self._mask(rows, states)
        if not bool(chosen.any()):
            return 0.0 * states.sum(1)
        first = states.chunk(len(self.parts), 1)[0]
        keys = (states.detach() if self.detach_negatives else states).chunk(len(self.parts), 1)
        anchor = self._annotated(rows, first)
        positive = self.signal == "positive"
        query, among = (anchor, states.detach().any(1)) if positive else (keys[0], chosen)
        found = info_nce(anchor, first, query, keys, among, self.temperature, self.cap)
        return found if self.mask_broadcast else torch.where(chosen, found, 0.0)

    def _mask(self, rows: Sequence[Row], like: Tensor) -> Tensor:
        return torch.tensor([self.chosen(row) for row in rows], device=like.device)

    def _annotated(self, rows: Sequence[Row], like: Tensor) -> Tensor:
        """(b, D) z1 of each row; zero where it has none."""
        none = like.new_zeros(like.shape[1])
        return torch.stack([row.vectors.get(self.anchor, none).to(none) for row in rows])


contrast = Contrast
