"""What the in-process samplers share: the answers of a call, the draw of their tokens, and the finished samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from whet.errors import WhetError
from whet.records import Sample
from whet.sampling.sampler import Request, SamplingSettings

if TYPE_CHECKING:
    from whet.models.policy import Policy


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to draw.

    Attributes:
        index: its place among all answers of the call.
        rollout: its place among the answers of its request.
        prompt: token ids before the first sampled one; one tuple for all answers of a request.
        limit: most tokens it may have: the budget, or what the model's maximum length leaves.
    """

    index: int
    request: Request
    rollout: int
    prompt: tuple[int, ...]
    limit: int

    @property
    def settings(self) -> SamplingSettings:
        return self.request.settings

    @property
    def seed(self) -> int:
        return self.request.seeds[self.rollout]

    def sample(self, policy: Policy, ids: list[int], logprobs: Tensor, entropy: Tensor | None = None) -> Sample:
        """The finished sample: the request's segments and the drawn ids, cut by the format.

        Args:
            logprobs, entropy: one value for each of `ids`; who does not know the entropy gives None.
        """
        if not math.isfinite(float(logprobs.sum())):
            raise WhetError(
                f"the model gave logits that are not finite while it answered problem '{self.request.problem_id}': "
                "its weights have diverged; start from an earlier checkpoint, with a smaller learning rate"
            )
        per_token = {}
        for name, drawn in (("sampler_logprob", logprobs), ("entropy", entropy)):
            if drawn is None:
                continue
            full = torch.zeros(len(self.prompt) + len(ids))
            full[len(self.prompt) :] = drawn
            per_token[name] = full
        request = self.request
        return Sample(
            segments=[*(replace(s, ids=list(s.ids)) for s in request.segments), *policy.format.cut(ids)],
            problem_id=request.problem_id,
            group_id=request.group_id,
            rollout_id=self.rollout,
            per_token=per_token,
            settings=self.settings.as_dict(),
        )


def answers_of(policy: Policy, requests: Sequence[Request]) -> list[list[Answer]]:
    """The answers of each request. A prompt that leaves no room for a token is an error."""
    units: list[list[Answer]] = []
    index = 0
    for request in requests:
        prompt = tuple(i for s in request.segments for i in s.ids)
        name = f"problem '{request.problem_id}'" if request.problem_id else f"request {len(units)}"
        if not prompt:
            raise WhetError(f"the prompt of {name} is empty: a model needs at least one token to answer")
        room = policy.max_length - len(prompt)
        if room < 1:
            raise WhetError(
                f"the prompt of {name} has {len(prompt)} tokens and the model takes {policy.max_length}, "
                "the answer included: shorten the prompt or choose a model with a longer context"
            )
        limit = min(request.settings.max_new_tokens, room)
        units.append([Answer(index + i, request, i, prompt, limit) for i in range(len(request.seeds))])
        index += len(request.seeds)
    return units


def stopped(policy: Policy, ids: list[int], stop: Sequence[str]) -> bool:
    """Whether a stop string stands at the end of an answer that has no earlier one."""
    # a token is at least one byte, so that the longest string lies within as many tokens as it has bytes; one more
    # because some tokenizers drop a space at the very start of what they decode
    reach = max(len(s.encode()) for s in stop) + 1
    tail = policy.format.decode(ids[-reach:])
    return any(s in tail for s in stop)


BLOCK = 64  # tokens whose probabilities are summed before the cumulative distribution is searched


class Draw:
    """Draws the next token of many answers, each with its own settings, by inverting the cumulative distribution.

    Token t of an answer is the first whose cumulative probability exceeds u_t, the t-th number of a generator seeded
    with the answer's seed. The numbers are drawn on the CPU in double precision, whatever the model's precision and
    device, and rows are worked on apart, so that no other answer and no batch shape enters.
    """

    def __init__(self, answers: Sequence[Answer], device: torch.device) -> None:
        self.device = device
        self.uniforms = torch.zeros(0, 0, dtype=torch.float64, device=device)
        self._settings: list[SamplingSettings] = []
        self.extend(answers)

    def extend(self, answers: Sequence[Answer]) -> None:
        """Further answers, behind the others."""
        new = self._uniforms(answers).to(self.device)
        width = max(self.uniforms.shape[1], new.shape[1])
        self.uniforms = torch.cat([pad(u, (0, width - u.shape[1])) for u in (self.uniforms, new)])
        self._read([*self._settings, *(a.settings for a in answers)])

    def keep(self, order: Sequence[int]) -> None:
        """Answer i is the one that was `order[i]`."""
        self.uniforms = self.uniforms[torch.tensor(order, dtype=torch.long, device=self.device)]
        self._read([self._settings[o] for o in order])

    def _read(self, settings: list[SamplingSettings]) -> None:
        self._settings, device = settings, self.device
        hot = [s.temperature > 0 for s in settings]
        self.greedy = torch.tensor([not h for h in hot], dtype=torch.bool, device=device)
        self.any_greedy, self.any_hot = not all(hot), any(hot)
        self.temperature = torch.tensor([s.temperature or 1.0 for s in settings], device=device)
        self.tempered = any(s.temperature not in (0.0, 1.0) for s in settings)
        # truncation does not change a greedy answer, and its reported distribution is the model's own
        top_k = [s.top_k if h else 0 for s, h in zip(settings, hot, strict=True)]
        top_p = [s.top_p if h else 1.0 for s, h in zip(settings, hot, strict=True)]
        self.truncated = any(top_k) or any(p < 1 for p in top_p)
        self.widest = max(top_k) if top_k and all(top_k) else None
        self.top_k = torch.tensor(top_k, device=device)
        # 1.0 keeps everything even where rounding lifts a cumulative sum above it
        self.top_p = torch.tensor([p if p < 1 else 2.0 for p in top_p], device=device)

    def __call__(self, logits: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token, its log-probability, and the entropy of the distribution it was drawn from: (R,) each.

        Args:
            logits: (R, V).
            steps: (R,) number of tokens that each answer has so far.
        """
        if logits.dtype != torch.float64:
            logits = logits.float()
        if self.tempered:
            logits = logits / self.temperature[:, None].to(logits.dtype)
        if self.truncated:
            logits = self._truncate(logits)
        probs = logits.softmax(-1)
        if self.any_hot:
            token = self._invert(probs, self.uniforms.gather(1, steps[:, None]))
            if self.any_greedy:
                token = torch.where(self.greedy, logits.argmax(-1), token)
        else:
            token = logits.argmax(-1)
        logprob = probs.gather(-1, token[:, None]).log()
        # entropy = log Z - E[logit], and log Z from the drawn token: no further pass over the vocabulary
        entropy = (logits.gather(-1, token[:, None]) - logprob)[:, 0] - torch.linalg.vecdot(probs, logits)
        return token, logprob[:, 0], entropy

    @staticmethod
    def _invert(probs: Tensor, uniforms: Tensor) -> Tensor:
        """(R,) the first token whose cumulative probability exceeds its uniform number, by blocks of the vocabulary."""
        rows, width = probs.shape
        blocks = pad(probs, (0, -width % BLOCK)).view(rows, -1, BLOCK)
        cumulative = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
        point = uniforms * cumulative[:, -1:]
        # clamped for probabilities that are not finite, which `Answer.sample` refuses
        block = torch.searchsorted(cumulative, point, right=True).clamp(max=blocks.shape[1] - 1)
        before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0.0)
        inside = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0].cumsum(-1, dtype=torch.float64)
        # the block's sum is rounded: its last token takes what is left over
        point = torch.minimum(point - before, inside[:, -1:].nextafter(inside.new_zeros(())))
        token = block * BLOCK + torch.searchsorted(inside, point, right=True)
        return token[:, 0].clamp(max=width - 1)

    def _truncate(self, logits: Tensor) -> Tensor:
        """Top-k, then top-p of what is left; ties with the last kept token stay. A finite floor keeps 0 x log 0 = 0."""
        width = logits.shape[-1]
        ranked = logits.topk(min(self.widest or width, width)).values
        top_k = self.top_k[:, None]
        last = ranked.gather(-1, torch.where(top_k > 0, top_k, width).clamp(max=ranked.shape[-1]) - 1)
        kept = ranked >= last
        probs = ranked.masked_fill(~kept, -torch.inf).softmax(-1)
        above = probs.cumsum(-1) - probs
        kept &= above < self.top_p[:, None]
        cut = ranked.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
        return logits.masked_fill(logits < cut, torch.finfo(logits.dtype).min)

    @staticmethod
    def _uniforms(answers: Sequence[Answer]) -> Tensor:
        uniforms = torch.zeros(len(answers), max((a.limit for a in answers), default=0), dtype=torch.float64)
        generator = torch.Generator()
        for row, answer in zip(uniforms, answers, strict=True):
            if answer.settings.temperature > 0:
                generator.manual_seed(answer.seed)
                row[: answer.limit] = torch.rand(answer.limit, generator=generator, dtype=torch.float64)
        # strictly below 1 also after the product with a sum, else no token would exceed it
        return uniforms.clamp_(max=1 - 2**-40)
