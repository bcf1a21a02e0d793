"""VllmSampler: answers by a vLLM server, which gets the policy's weights whenever they have changed.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --dtype float32 --logprobs-mode processed_logprobs --port 8000
    whet run grpo --model MODEL --sampler vllm:http://127.0.0.1:8000/v1

Written against the interface of vLLM 0.32: `POST /v1/completions` with token ids in and out, and the development endpoints
`/collective_rpc` (its `reload_weights` loads a folder in place) and `/reset_prefix_cache`. These are open to whoever reaches the
port, so keep it on loopback. Weights travel through a folder below `$WHET_HOME`, which the server must see at the same path;
adapters are merged into a copy for it.

Nothing is believed: after each push the log-probs of eight fixed prompts must be the policy's, and a server that answers with
other weights, with those of the push before, or with log-probs of another distribution than the one it draws from, is an error.

Departures from the in-process samplers: an answer is a function of its request up to the server's rounding, which depends on
what else it runs; and the entropy of a token is not known, so that what needs it (`entropy_tokens`, an entropy target) says so.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whet.endpoint import SAID, Call, Endpoint
from whet.errors import WhetError
from whet.models.meter import Meter
from whet.records import Sample
from whet.runs import index
from whet.sampling.answers import Answer, answers_of
from whet.sampling.sampler import Request

if TYPE_CHECKING:
    from whet.models.policy import Policy

log = logging.getLogger("whet")

PROMPTS, LENGTH = 8, 16  # of the check after a push
TEMPERATURE = 0.5  # at which it draws a token, to see of which distribution the server's log-probs are
EXACT, COARSE = 0.01, 0.1  # nats by which they may differ on average: policies in fp32, and in bf16 or mixed
STILL = 1e-5  # a policy whose log-probs moved less than this has not moved


class VllmSampler:
    """Draws answers from a vLLM server.

    Args:
        url: up to the version, as in `http://127.0.0.1:8000/v1`.
        model: the name that the server knows it by; "" asks the server, which must then have one only.
        concurrency, deadline, timeout: of the requests; see `Endpoint`.
        place: where pushed weights lie for the server; by default `$WHET_HOME/pushed`.
    """

    name = "vllm"

    def __init__(
        self, url: str, model: str = "", *, concurrency: int = 64, deadline: float = 120.0, timeout: float = 600.0,
        place: Path | None = None,
    ) -> None:  # fmt: skip
        self.endpoint = Endpoint("sampler", url, concurrency=concurrency, deadline=deadline, timeout=timeout)
        self.root = self.endpoint.url.removesuffix("/v1")
        self.model = model
        self.place = place or index.place().parent / "pushed"
        self.pushes = 0
        self._pushed = ""  # fingerprint of the weights that the server has
        # of the fixed prompts, at the last check and at the one before the last push: the policy's log-probs, the server's, their gap
        self._last: tuple[Tensor, Tensor, float] | None = None
        self._before: tuple[Tensor, Tensor, float] | None = None

    # -- weights ----------------------------------------------------------------------------------------------------
    def prepare(self, policy: Policy) -> None:
        """Give the server the policy's weights where they have changed. Ranks do it together, and the first one pushes."""
        if policy.ranks.first:
            now = fingerprint(policy)
            if now != self._pushed:
                self._pushed = ""  # what the server has is not known until the check
                self.push(policy)
                self.check(policy)
                self._pushed = now
        policy.ranks.broadcast(None)

    def push(self, policy: Policy) -> None:
        """Write the weights to a folder and have the server load it."""
        if policy.virtual:
            raise WhetError(
                "virtual tokens are no change of the weights, and cannot be pushed to a server: use --sampler native"
            )
        self.pushes += 1
        self._before = self._last
        folder = self._folder / f"{self.pushes:06d}"
        _merged(policy).save_pretrained(folder)
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            self._post("/collective_rpc", reload)
            self._post("/reset_prefix_cache?reset_running_requests=true", {})  # what it holds is of the old weights
        except WhetError as problem:
            raise WhetError(f"{problem}; the weights of push {self.pushes} did not get there: start vLLM with "
                            f"VLLM_SERVER_DEV_MODE=1, where it can read '{self._folder}'") from None  # fmt: skip
        shutil.rmtree(self._folder / f"{self.pushes - 1:06d}", ignore_errors=True)
        log.info("sampler '%s': weights pushed, %d times so far", self.endpoint.name, self.pushes)

    def check(self, policy: Policy) -> None:
        """Refuse a server whose log-probs are not the policy's: of eight fixed prompts, and of a token that it draws."""
        prompts = fixed_prompts(policy.model.config.vocab_size)
        ours, following = _scores(policy, prompts)
        theirs, drawn = self._scored(prompts)
        gap = float((theirs - ours).abs().mean())
        if self._before is not None:
            then, told, noise = self._before
            moved, behind, answered = (
                float((a - b).abs().mean()) for a, b in ((ours, then), (theirs, then), (theirs, told))
            )
            if (moved > max(2 * noise, STILL) and behind < gap) or (moved > STILL and answered < moved / 10):
                raise self.endpoint.error(f"is stale: after push {self.pushes} the log-probs of {PROMPTS} fixed prompts are those of "
                                          f"the weights before ({behind:.2g} nats off, and {gap:.2g} from the new ones); restart it")  # fmt: skip
        tolerance = COARSE if policy.mixed or policy.dtype.itemsize < 4 else EXACT
        if not gap <= tolerance:
            raise self.endpoint.error(f"has other weights than the policy: after push {self.pushes} the log-probs of {PROMPTS} fixed "
                                      f"prompts differ by {gap:.2g} nats on average, and {tolerance:g} are allowed; serve the same "
                                      "model, in the policy's precision (vllm serve --dtype float32)")  # fmt: skip
        at = torch.tensor([token for token, _ in drawn])[:, None]
        told = torch.tensor([logprob for _, logprob in drawn])
        plain, sampled = (
            (told - (following / t).log_softmax(-1).gather(-1, at)[:, 0]).abs().mean() for t in (1.0, TEMPERATURE)
        )
        if not float(sampled) <= tolerance / TEMPERATURE:
            why = ("are not of the distribution that it draws from, with temperature and truncation: start it with --logprobs-mode "
                   "processed_logprobs" if float(plain) < float(sampled) else f"differ by {float(sampled):.2g} nats from the policy's")  # fmt: skip
            raise self.endpoint.error(f"gives the tokens that it draws log-probs that {why}")
        self._last, self._before = (ours, theirs, gap), None

    @cached_property
    def _folder(self) -> Path:
        self.place.mkdir(parents=True, exist_ok=True)
        self._holder = tempfile.TemporaryDirectory(prefix="weights-", dir=self.place.absolute())
        folder = Path(self._holder.name)
        folder.chmod(0o755)  # the server may be another user's
        return folder

    def _post(self, path: str, body: Mapping[str, Any]) -> None:
        self.endpoint.ask([Call(self.root + path, body)], lambda place, found: None)

    def _scored(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, list[tuple[int, float]]]:
        """(8, 15) log-probs of the prompts' tokens but the first, and a token drawn behind each with its log-prob."""
        more = {"max_tokens": 1, "temperature": TEMPERATURE, "seed": 0, "prompt_logprobs": 1}

        def read(place: int, found: Any) -> tuple[list[float], tuple[int, float]]:
            told: Any = self._choice(found).get("prompt_logprobs")
            try:
                scored = [
                    float(row[str(token)]["logprob"]) for row, token in zip(told[1:], prompts[place][1:], strict=True)
                ]
            except (TypeError, KeyError, ValueError):
                raise self.endpoint.error(
                    f"does not tell the log-probs of a prompt's tokens: {str(told)[:SAID]}; is it vLLM?"
                ) from None
            ids, logprobs = self._tokens(found, prompts[place])
            return scored, (ids[0], logprobs[0])

        found = self._complete([(prompt, more) for prompt in prompts], read)
        return torch.tensor([scored for scored, _ in found]), [drawn for _, drawn in found]

    # -- answers ----------------------------------------------------------------------------------------------------
    def sample(
        self, policy: Policy, requests: Sequence[Request], on_token: Callable[[int, int], None] | None = None
    ) -> list[list[Sample]]:
        units = answers_of(policy, requests)
        answers = [answer for unit in units for answer in unit]
        ends = policy.format.end_ids

        def read(place: int, found: Any) -> Sample:
            answer = answers[place]
            ids, logprobs = self._tokens(found, answer.prompt)
            cut = next((i for i, token in enumerate(ids[:-1]) if token in ends), None)
            whole = ids[-1] in ends or len(ids) == answer.limit or bool(answer.settings.stop)
            if cut is not None or len(ids) > answer.limit or not whole:
                raise self.endpoint.error(f"ended an answer to problem '{answer.request.problem_id}' where it may not end, after "
                                          f"{len(ids)} of {answer.limit} tokens ({self._choice(found).get('finish_reason')})")  # fmt: skip
            for token in ids if on_token else ():
                on_token(answer.index, token)  # type: ignore[misc]
            return answer.sample(policy, ids, torch.tensor(logprobs))

        drawn = self._complete([(a.prompt, _settings(a, ends)) for a in answers], read)
        known, self._pushed = self._pushed, ""
        self.check(policy)  # that nobody has restarted the server, or pushed to it, meanwhile
        self._pushed = known
        _count(policy, units, drawn)
        each = iter(drawn)
        return [[next(each) for _ in unit] for unit in units]

    def _complete(
        self, asked: Sequence[tuple[Sequence[int], Mapping[str, Any]]], read: Callable[[int, Any], Any]
    ) -> list[Any]:
        self.model = self.model or self.endpoint.only_model()
        plain = {
            "model": self.model, "n": 1, "logprobs": 0, "return_token_ids": True, "add_special_tokens": False,
            "skip_special_tokens": False, "include_stop_str_in_output": True,
            # neutral, or the server takes what the model's generation_config says
            "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        }  # fmt: skip
        bodies = [{**plain, "prompt": list(prompt), **more} for prompt, more in asked]
        return self.endpoint.ask([Call("/completions", body) for body in bodies], read)

    def _choice(self, found: Any) -> Mapping[str, Any]:
        choices = found.get("choices") if isinstance(found, Mapping) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
            raise self.endpoint.error(f"gave what is not a completion: {str(found)[:SAID]}")
        return choices[0]

    def _tokens(self, found: Any, prompt: Sequence[int]) -> tuple[list[int], list[float]]:
        """The ids of an answer and their log-probs."""
        choice = self._choice(found)
        ids, told = choice.get("token_ids"), choice.get("logprobs")
        logprobs = told.get("token_logprobs") if isinstance(told, Mapping) else None
        if not isinstance(ids, list) or not isinstance(logprobs, list) or not ids or len(ids) != len(logprobs):
            raise self.endpoint.error(
                f"gave an answer without token ids and their log-probs: {str(choice)[:SAID]}; is it vLLM?"
            )
        if choice.get("prompt_token_ids") != list(prompt):
            raise self.endpoint.error(
                "has read other tokens than it was given: it cuts prompts, or adds tokens of its own"
            )
        if not all(type(i) is int and i >= 0 for i in ids) or not all(map(_is_logprob, logprobs)):
            raise self.endpoint.error(
                f"gave tokens or log-probs that are none: {str(ids)[:SAID]}, {str(logprobs)[:SAID]}"
            )
        return ids, [float(value) for value in logprobs]


def _is_logprob(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _settings(answer: Answer, ends: set[int] | frozenset[int]) -> dict[str, Any]:
    settings = answer.settings
    hot = settings.temperature > 0  # truncation does not change a greedy answer, and would its log-probs
    return {
        "max_tokens": answer.limit, "temperature": settings.temperature, "top_p": settings.top_p if hot else 1.0,
        "top_k": settings.top_k if hot else 0, "seed": answer.seed % (1 << 63), "stop": list(settings.stop),
        "stop_token_ids": sorted(ends),
    }  # fmt: skip


def _count(policy: Policy, units: Sequence[Sequence[Answer]], drawn: Sequence[Sample]) -> None:
    """What it took, as far as it can be known from here: each prompt once, and each answer's own tokens."""
    shapes, meter = policy.shapes, policy.meter
    meter.flops += sum(shapes.forward(len(unit[0].prompt), len(unit[0].prompt), 1) for unit in units if unit)
    for sample in drawn:
        n = len(sample) - sample.prompt_length
        meter.flops += shapes.forward(n, sample.prompt_length + n / 2, n)
        meter.sampled_tokens += n


def fixed_prompts(vocabulary: int) -> list[list[int]]:
    """Eight prompts of sixteen tokens from all over the vocabulary, always the same."""
    return [[(7919 * (LENGTH * row + at) + 31) % vocabulary for at in range(LENGTH)] for row in range(PROMPTS)]


def fingerprint(policy: Policy) -> str:
    """A hash of what may have moved: the trainable weights, as they are in memory."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in policy.trainable_parameters().items():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _merged(policy: Policy) -> Any:
    """The model as plain Hugging Face weights: itself, or a copy with its adapters merged."""
    return policy.model if policy.peft is None else copy.deepcopy(policy.peft).merge_and_unload()


def _scores(policy: Policy, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(8, 15) the policy's log-probs of the prompts' tokens but the first, and (8, V) its logits behind them."""
    ids = torch.tensor(prompts, device=policy.device)
    with policy.metered(Meter()):
        logits = policy.logits(ids).float()
    scored = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return scored.cpu(), logits[:, -1].cpu()
