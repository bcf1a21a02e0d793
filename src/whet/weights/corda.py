"""CorDA (2406.05223): adapters that begin as a part of each matrix, chosen by what the layer is given on sample texts.

    C  = sum_t x_t x_t^T                 x the layer's inputs, not centred      C~ = C + d mean(diag C) I
    W C~ = U S V^T                       so that  W = U S V^T C~^-1
    B = U_r (S_r / s)^1/2                A = (S_r / s)^1/2 V_r^T C~^-1           s B A = U_r U_r^T W

`ipm` trains the r directions that are largest on the sample (give it the task that is learnt), `kpm` the r smallest (give it what
is to be kept). With C = I, which is no sample at all, ipm is PiSSA (2404.02948). Sequences are divided by their largest entry first.

As released, the base becomes W - s B0 A0. Here it stays, and the beginning stands in the adapter, negative and at rest:

    W + s [B  -B0] [A; A0]               adapters of rank 2r, of which half moves

It is the same function with the same gradients of A and B. But the policy without adapters is still the base (a reference needs no
copy), what is saved is plain LoRA on that base, and no residual is rounded. It costs the forward of r more directions.

    whet run sft --weights corda:rank=8
    whet run grpo --weights "corda:mode=kpm,calibrate=sort:level=1;lists:level=1"
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.weights.calibration import second_moments
from whet.weights.masked import Packed, zero_outside
from whet.weights.menu import choice
from whet.weights.selectors import matrices
from whet.weights.weights import Build, Cost, Lora, Parameters, Weights

MODES, PEAKS = ("ipm", "kpm"), ("signed", "absolute")
DAMPING, INEXACT = 0.01, 0.05  # the first d, and the largest error of the inverse, in its Frobenius norm


class Corda(Weights):
    """Adapters on every linear layer but the head that begin as directions of its matrix.

    Args:
        mode: `ipm` the largest, `kpm` the smallest.
        rank: r, at most the smaller side of each matrix.
        alpha: the update is scaled by alpha / r; 0 is r.
        count: demonstrations to calibrate on; 0 is none, and C = I.
        calibrate: their tasks, separated by `;`; the stage's own where nothing is said, which kpm refuses.
        peak: sequences are divided by |max x| (`signed`, as released) or by max |x| (`absolute`).
    """

    injects = shards = True

    def __init__(
        self, mode: str = "ipm", rank: int = 16, alpha: float = 0.0, count: int = 256, calibrate: str = "",
        peak: str = "signed",
    ) -> None:  # fmt: skip
        self.name = "corda" if count else "pissa"
        for what, value, known in (("mode", mode, MODES), ("peak", peak, PEAKS)):
            if value not in known:
                raise WhetError(f"{self.name}: {what} is {' or '.join(known)}, not '{value}'")
        self.tasks = [task.strip() for task in calibrate.split(";")]
        if rank < 1 or alpha < 0 or count < 0 or 0 < count < len(self.tasks):
            raise WhetError(f"{self.name}: rank is at least 1, alpha at least 0, and rows are 0 or at least one of each task; "
                            f"not {rank}, {alpha:g} and {count}")  # fmt: skip
        if mode == "kpm" and count and not calibrate:
            raise WhetError("corda: kpm keeps what its sample shows; say whose demonstrations, as calibrate=sort;lists, or "
                            "rows=0 for the smallest directions of the weights alone")  # fmt: skip
        self.mode, self.rank, self.alpha, self.count, self.peak = mode, rank, alpha or float(rank), count, peak
        self.places: dict[str, Tensor] = {}

    def attach(self, policy: Policy, seed: int) -> None:
        """Calibrate, decompose, and put the adapters in.

        Raises:
            WhetError: the model has adapters already, or a matrix has fewer directions.
        """
        if policy.peft is not None:
            raise WhetError(f"weights {self.name} begin as a part of the base, and the model has adapters: go on with those by "
                            "--weights lora, or merge them first (--weights full does)")  # fmt: skip
        starts = policy.ranks.broadcast(self.starts(policy))
        Lora(2 * self.rank, 2 * self.alpha).attach(policy, seed)
        own = dict(policy.model.named_parameters())
        with torch.no_grad():
            for name, (a, b) in starts.items():
                down, up = (f"{name}.{part}.default.weight" for part in ("lora_A", "lora_B"))
                own[down].copy_(torch.cat([a, a]))
                own[up].copy_(torch.cat([b, -b], 1))
                first = torch.arange(self.rank, dtype=torch.int32, device=policy.device)
                size = own[down].shape[1]
                self.places[down] = torch.arange(self.rank * size, dtype=torch.int32, device=policy.device)
                rows = torch.arange(len(b), dtype=torch.int32, device=policy.device)
                self.places[up] = (2 * self.rank * rows[:, None] + first).flatten()

    def starts(self, policy: Policy) -> dict[str, tuple[Tensor, Tensor]]:
        """Module name -> the A (r, in) and B (out, r) that it begins with."""
        weights = {name.removesuffix(".weight"): p for name, p in matrices(policy.model).items()}
        for name, weight in weights.items():
            if self.rank > min(weight.shape):
                raise WhetError(
                    f"{self.name}: rank {self.rank} is more than the {min(weight.shape)} directions of '{name}'"
                )
        moments = self._moments(policy, list(weights)) if self.count else {}
        found = {}
        for name, weight in weights.items():
            flipped = not isinstance(policy.model.get_submodule(name), nn.Linear)  # GPT-2's are (in, out)
            try:
                u, sizes, v = decompose(weight.detach().T if flipped else weight.detach(), moments.pop(name, None))
            except WhetError as problem:
                raise WhetError(f"{self.name}: {problem} at '{name}'") from None
            kept = slice(self.rank) if self.mode == "ipm" else slice(-self.rank, None)
            root = (sizes[kept] * self.rank / self.alpha).sqrt()
            found[name] = (root[:, None] * v[kept], u[:, kept] * root)
        return found

    def optimizer(self, build: Build, parameters: Parameters) -> torch.optim.Optimizer:
        return Packed(build, parameters, self.places)  # type: ignore[return-value]

    def mask(self, parameters: Parameters) -> None:
        """The half that rests has no part in the norm that is clipped."""
        zero_outside(parameters, self.places)

    def cost(self, model: nn.Module) -> Cost:
        both = Lora(2 * self.rank).cost(model).gradients
        return Cost(both // 2, both, both // 2)

    def _moments(self, policy: Policy, names: list[str]) -> dict[str, Tensor]:
        if self.rows is None:
            raise WhetError(f"weights {self.name} calibrate on data, and nothing was bound that makes rows")
        each = -(-self.count // len(self.tasks))
        rows = [row for task in self.tasks for row in self.rows(each, task)]
        return second_moments(policy, rows, names, partial(divided, peak=self.peak), per_sequence=True)


def decompose(weight: Tensor, moment: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, k), S (k,) falling, and V^T C~^-1 (k, n), whose product is the weight (m, n); k is the smaller of m and n.

    Args:
        moment: C (n, n); None is the identity.
    """
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if moment is None:
        return torch.linalg.svd(weight, full_matrices=False)
    damped, inverse = _inverse(moment.to(weight.dtype))
    u, sizes, v = torch.linalg.svd(weight @ damped, full_matrices=False)
    return u, sizes, v @ inverse


def divided(x: Tensor, peak: str = "signed") -> Tensor:
    """The inputs (tokens, n) of one sequence over their largest entry."""
    return x / (x.max().abs() if peak == "signed" else x.abs().max())


def _inverse(moment: Tensor) -> tuple[Tensor, Tensor]:
    """C~ and its inverse; the damping doubles until that is exact enough."""
    level = moment.diagonal().mean()
    if not (level > 0 and moment.isfinite().all()):
        raise WhetError(
            "inputs are all zero, or cannot be divided by their largest entry (peak=absolute always can where they are not)"
        )
    eye, d = torch.eye(len(moment), dtype=moment.dtype, device=moment.device), DAMPING
    while True:
        damped = moment + d * level * eye
        inverse = torch.linalg.inv(damped)
        if float(torch.dist(damped @ inverse, eye)) < INEXACT:
            return damped, inverse
        d *= 2


@choice("corda", family="reparameterisation", paper="corda")
def by_corda(
    mode: str = "ipm", rank: int = 16, alpha: float = 0.0, rows: int = 256, calibrate: str = "", peak: str = "signed"
) -> Weights:  # fmt: skip
    """Adapters that begin as the directions a sample uses most, or least (2406.05223)."""
    return Corda(mode, rank, alpha, rows, calibrate, peak)


@choice("pissa", family="reparameterisation")
def by_pissa(rank: int = 16, alpha: float = 0.0) -> Weights:
    """Adapters that begin as the largest directions of the weights (2404.02948)."""
    return Corda("ipm", rank, alpha, count=0)
