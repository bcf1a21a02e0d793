"""Samplers: prompts in, answers out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from whet.errors import WhetError
from whet.records import Segment
from whet.sampling.sampler import Request, Sampler, SamplingSettings

if TYPE_CHECKING:
    from whet.models.policy import Policy
    from whet.sampling.huggingface import HuggingFaceSampler
    from whet.sampling.native import NativeSampler
    from whet.sampling.vllm import VllmSampler

__all__ = [
    "HuggingFaceSampler",
    "NativeSampler",
    "Request",
    "Sampler",
    "SamplingSettings",
    "VllmSampler",
    "check_sampler",
    "choose_sampler",
    "stream",
]

log = logging.getLogger("whet")


def __getattr__(name: str) -> Any:
    # the samplers import transformers, which is slow; the contract alone does not need it
    if name == "NativeSampler":
        from whet.sampling.native import NativeSampler

        return NativeSampler
    if name == "HuggingFaceSampler":
        from whet.sampling.huggingface import HuggingFaceSampler

        return HuggingFaceSampler
    if name == "VllmSampler":
        from whet.sampling.vllm import VllmSampler

        return VllmSampler
    raise AttributeError(f"module 'whet.sampling' has no attribute '{name}'")


def check_sampler(spec: str) -> None:
    """Refuse what names no sampler: `auto`, `native`, `huggingface`, or `vllm:` and the address of a server."""
    if spec not in ("auto", "native", "huggingface") and not spec.startswith(("vllm:http://", "vllm:https://")):
        raise WhetError(
            f"sampler '{spec}' is not known: use auto, native, huggingface or vllm:http://HOST:PORT/v1[#NAME]"
        )


def choose_sampler(policy: Policy) -> Sampler:
    """The sampler that the policy is to have. By itself it has the native one where that reproduces the model's own uncached
    forward on this machine, else Hugging Face's."""
    from whet.sampling.huggingface import HuggingFaceSampler
    from whet.sampling.native import NativeSampler

    spec, name = policy.asked_sampler, type(policy.model).__name__
    check_sampler(spec)
    if spec.startswith("vllm:"):
        from whet.sampling.vllm import VllmSampler

        url, _, model = spec.removeprefix("vllm:").partition("#")
        return VllmSampler(url, model)
    if spec == "huggingface":
        return HuggingFaceSampler()
    reason = _disagreement(policy)
    if reason is not None and spec == "native":
        raise WhetError(f"sampler 'native' does not fit {name}: {reason}; use --sampler huggingface")
    if reason is None:
        log.info("sampler: native; it reproduces the uncached forward of %s", name)
        return NativeSampler()
    log.warning("sampler: Hugging Face generate, which is slower; native decoding does not fit %s: %s", name, reason)
    return HuggingFaceSampler()


def stream(policy: Policy, request: Request) -> Iterator[str]:
    """The text of a request's one answer, piece by piece as it is sampled."""
    if len(request.seeds) != 1:
        raise WhetError(f"only one answer can be streamed at a time, not {len(request.seeds)}")
    tokens: SimpleQueue[int | None] = SimpleQueue()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            policy.sample([request], lambda _, token: tokens.put(token))
        except BaseException as error:  # raised again below, where the caller is
            failed.append(error)
        finally:
            tokens.put(None)

    thread = Thread(target=run, daemon=True)
    thread.start()
    ids: list[int] = []
    shown = ""
    while (token := tokens.get()) is not None:
        ids.append(token)
        text = policy.format.decode(ids)
        if not text.endswith("\ufffd"):  # a character whose bytes have not all come yet
            yield text.removeprefix(shown)
            shown = text
    thread.join()
    if failed:
        raise failed[0]
    if rest := policy.format.decode(ids).removeprefix(shown):
        yield rest


def _disagreement(policy: Policy) -> str | None:
    """Why the native sampler cannot be used, or None. It answers two prompts of unequal length greedily, and its
    log-probs and entropies must be those of forwards without a cache or padding."""
    import torch

    from whet.models.meter import Meter
    from whet.sampling.module import unsupported
    from whet.sampling.native import NativeSampler

    reason = unsupported(policy)
    if reason is not None:
        return reason
    vocabulary = policy.model.config.vocab_size
    settings = SamplingSettings(max_new_tokens=4, temperature=0.0)
    prompts = [[(7 * i + 3) % vocabulary for i in range(n)] for n in (3, 11)]
    coarse = policy.mixed or policy.dtype.itemsize < 4
    tolerance = 0.1 if coarse else 1e-3
    training = policy.model.training
    policy.model.eval()
    try:
        with torch.no_grad(), policy.metered(Meter()):
            requests = [Request([Segment("question", ids)], [0], settings) for ids in prompts]
            for (sample,) in NativeSampler().sample(policy, requests):
                ids = torch.tensor(sample.ids, device=policy.device)
                start = sample.prompt_length
                logprobs = policy.logits(ids[None])[0, start - 1 : -1].double().log_softmax(-1).cpu()
                chosen = logprobs.gather(-1, ids[start:, None].cpu())[:, 0]
                entropy = -(logprobs.exp() * logprobs).sum(-1)
                for ours, theirs in (("sampler_logprob", chosen), ("entropy", entropy)):
                    gap = float((sample.per_token[ours][start:].double() - theirs).abs().max())
                    if not gap <= tolerance:
                        return f"its {ours.replace('_', ' ')} differs by {gap:.2g} from an uncached forward"
    except Exception as error:  # whatever a foreign architecture does not stand; the warning names it
        return f"{type(error).__name__}: {error}"
    finally:
        policy.model.train(training)
    return None
