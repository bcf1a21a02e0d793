"""HuggingFaceSampler: answers by `model.generate`, for any architecture that it can run.

`generate` runs the model and its cache; the draw is Whet's own, so that seeds, settings, log-probs and entropies mean
the same as in the native sampler. It is a logits processor that leaves the drawn token alone in the running, and
`generate` then takes the largest score. Answers are batched by equal prompt length: nothing is padded, which
architectures with recurrent state need.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from whet.models.meter import autocast
from whet.records import Sample
from whet.sampling.answers import Answer, Draw, answers_of, stopped
from whet.sampling.sampler import Request

if TYPE_CHECKING:
    from whet.models.policy import Policy


class HuggingFaceSampler:
    """Draws answers with `model.generate`.

    Args:
        batch_size: most answers generated together.
    """

    name = "huggingface"

    def __init__(self, batch_size: int = 64) -> None:
        self.batch_size = batch_size

    def sample(
        self, policy: Policy, requests: Sequence[Request], on_token: Callable[[int, int], None] | None = None
    ) -> list[list[Sample]]:
        units = answers_of(policy, requests)
        answers = sorted((a for unit in units for a in unit), key=lambda a: len(a.prompt))
        drawn: dict[int, Sample] = {}
        for _, group in groupby(answers, key=lambda a: len(a.prompt)):
            same = list(group)
            for start in range(0, len(same), self.batch_size):
                drawn.update(_generate(policy, same[start : start + self.batch_size], on_token))
        return [[drawn[a.index] for a in unit] for unit in units]


def _generate(
    policy: Policy, answers: list[Answer], on_token: Callable[[int, int], None] | None
) -> Iterator[tuple[int, Sample]]:
    drawing = _Drawing(policy, answers, on_token)
    end = _End(drawing)
    ids = torch.tensor([a.prompt for a in answers], device=policy.device)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max(a.limit for a in answers),
        pad_token_id=policy.format.eos_id,
    )
    with _generation_config(policy.model, settings), autocast(policy.device, policy.mixed):
        policy.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            logits_processor=LogitsProcessorList([drawing]),
            stopping_criteria=StoppingCriteriaList([end]),
        )
    tokens, logprobs, entropies = (torch.stack(v, 1) for v in zip(*drawing.drawn, strict=True))
    count = drawing.lengths
    steps, width = len(drawing.drawn), ids.shape[1]
    # every row runs until the last one is finished; the prompts are run once for each answer
    shapes, rows = policy.shapes, len(answers)
    policy.meter.flops += shapes.forward(rows * width, width, rows)
    policy.meter.flops += sum(shapes.forward(rows, width + step, rows) for step in range(1, steps))
    policy.meter.sampled_tokens += sum(count)
    tokens, logprobs, entropies = tokens.tolist(), logprobs.cpu(), entropies.cpu()
    for row, (answer, n) in enumerate(zip(answers, count, strict=True)):
        yield answer.index, answer.sample(policy, tokens[row][:n], logprobs[row, :n], entropies[row, :n])


class _Drawing(LogitsProcessor):
    """Draws the next token of every answer and leaves nothing else to choose from.

    Attributes:
        drawn: (tokens, log-probs, entropies), (R,) each, for each step.
        lengths: tokens of each answer so far.
        live: whether it still runs.
    """

    def __init__(self, policy: Policy, answers: list[Answer], on_token: Callable[[int, int], None] | None) -> None:
        self.policy, self.answers, self.on_token = policy, answers, on_token
        self.draw = Draw(answers, policy.device)
        self.drawn: list[tuple[Tensor, Tensor, Tensor]] = []
        self.ids: list[list[int]] = [[] for _ in answers]
        self.live = [True] * len(answers)

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.ids]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not any(self.live):  # `generate` may run one step ahead of its stopping criteria
            return scores
        steps = torch.full((len(self.answers),), len(self.drawn), device=scores.device)
        token, logprob, entropy = self.draw(scores, steps.clamp(max=self.draw.uniforms.shape[1] - 1))
        self.drawn.append((token, logprob.float(), entropy.float()))
        for row, t in enumerate(token.tolist()):
            if not self.live[row]:
                continue
            answer, ids = self.answers[row], self.ids[row]
            ids.append(t)
            if self.on_token:
                self.on_token(answer.index, t)
            stop = answer.settings.stop
            ended = t in self.policy.format.end_ids or len(ids) >= answer.limit
            self.live[row] = not ended and not (stop and stopped(self.policy, ids, stop))
        return torch.full_like(scores, -torch.inf).scatter(-1, token[:, None], 0.0)


class _End(StoppingCriteria):
    """Tells `generate` which answers are finished."""

    def __init__(self, drawing: _Drawing) -> None:
        self.drawing = drawing

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor([not live for live in self.drawing.live], device=input_ids.device)


@contextlib.contextmanager
def _generation_config(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Replace the model's own generation settings, which `generate` would mix in (penalties, its own end tokens)."""
    before = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = before
