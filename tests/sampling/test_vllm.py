"""The vLLM sampler against a stand-in for the server: its protocol, backed by a tiny model that is loaded from what is pushed.

vLLM itself is not run here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tiny import stir, tiny_policy
from trained import trained_folder, trained_policy
from whet import launch
from whet.errors import WhetError
from whet.models.base import load
from whet.models.policy import Policy
from whet.records import Segment
from whet.runs import RunFolder
from whet.sampling import Request, SamplingSettings, VllmSampler, check_sampler, choose_sampler
from whet.sampling.native import NativeSampler
from whet.sampling.vllm import fingerprint, fixed_prompts
from whet.weights import get_weights


class Stand:
    """What of a vLLM server the sampler asks.

    Attributes:
        model: the weights that it has.
        seen: paths and bodies, in order.
        wrong: replaces a reply, by path.
        raw: tell the log-probs of the untempered distribution, as vLLM does without `--logprobs-mode processed_logprobs`.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.raw = model, False
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.wrong: dict[str, Callable[[dict[str, Any]], Any]] = {}
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None: ...

            def do_GET(self) -> None:
                self.reply({"data": [{"id": "policy"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
                with outer.lock:  # one model
                    outer.seen.append((self.path, body))
                    known = {"/collective_rpc": outer.reload, "/v1/completions": outer.complete,
                             "/reset_prefix_cache?reset_running_requests=true": lambda body: None}  # fmt: skip
                    answer = outer.wrong.get(self.path) or known.get(self.path)
                    found = answer(body) if answer else (404, {"detail": "Not Found"})
                self.reply(*reversed(found)) if isinstance(found, tuple) else self.reply(found)

            def reply(self, found: Any, status: int = 200) -> None:
                data = b"" if found is None else json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def reload(self, body: dict[str, Any]) -> Any:
        assert body["method"] == "reload_weights"
        self.model = AutoModelForCausalLM.from_pretrained(body["kwargs"]["weights_path"]).eval()

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> Any:
        ids, told = list(body["prompt"]), []
        scored = self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        draw = torch.Generator().manual_seed(body["seed"])
        while len(told) < body["max_tokens"]:
            logits = self.model(torch.tensor([ids])).logits[0, -1].double()
            heat = body["temperature"] or 1.0
            logprobs = (logits / heat).log_softmax(-1)
            token = (
                int(torch.multinomial(logprobs.exp(), 1, generator=draw))
                if body["temperature"]
                else int(logits.argmax())
            )
            told.append(float((logits.log_softmax(-1) if self.raw else logprobs)[token]))
            ids.append(token)
            if token in body.get("stop_token_ids", []):
                break
        n = len(body["prompt"])
        choice = {
            "token_ids": ids[n:],
            "prompt_token_ids": ids[:n],
            "logprobs": {"token_logprobs": told},
            "finish_reason": "stop",
        }
        if "prompt_logprobs" in body:
            rows = [{str(t): {"logprob": float(row[t])}} for t, row in zip(ids[1:n], scored, strict=False)]
            choice["prompt_logprobs"] = [None, *rows]
        return {"choices": [choice]}

    def paths(self) -> list[str]:
        return [path for path, _ in self.seen]


@pytest.fixture
def stand() -> Iterator[Stand]:
    started = Stand(tiny_policy(seed=5).model)
    yield started
    started.server.shutdown()
    started.server.server_close()


@pytest.fixture
def sampler(stand: Stand, tmp_path: Path) -> VllmSampler:
    return VllmSampler(stand.url, deadline=0.4, timeout=20, place=tmp_path / "pushed")


def requests(temperature: float = 0.0, n: int = 1, limit: int = 6) -> list[Request]:
    settings = SamplingSettings(limit, temperature=temperature)
    return [
        Request([Segment("question", ids)], list(range(n)), settings, f"p{i}")
        for i, ids in enumerate(([5, 6, 7], [9, 8, 7, 6]))
    ]


def drawn(policy: Policy, sampler: Any, asked: list[Request]) -> list[list[Any]]:
    policy.sampler = sampler
    return policy.sample(asked)


# -- answers -------------------------------------------------------------------------------------------------------------
def test_greedy_answers_and_their_log_probs_are_those_of_the_native_sampler(stand: Stand, sampler: VllmSampler) -> None:
    policy = trained_policy()
    asked = requests()
    ours, theirs = drawn(policy, NativeSampler(), asked), drawn(policy, sampler, asked)
    for (a,), (b,) in zip(ours, theirs, strict=True):
        assert (
            a.ids == b.ids and a.settings == b.settings and [s.kind for s in a.segments] == [s.kind for s in b.segments]
        )
        assert a.per_token["sampler_logprob"] == pytest.approx(b.per_token["sampler_logprob"], abs=1e-5)
        assert "entropy" not in b.per_token
    assert policy.meter.sampled_tokens == 2 * sum(len(a.ids) - a.prompt_length for (a,) in ours)


def test_what_is_asked_says_everything_that_the_servers_defaults_could_change(
    stand: Stand, sampler: VllmSampler
) -> None:
    policy = trained_policy()
    heard: list[tuple[int, int]] = []
    policy.sampler = sampler
    settings = SamplingSettings(5, temperature=0.7, top_p=0.9, top_k=3, stop=("12",))
    (samples,) = policy.sample(
        [Request([Segment("question", [5, 6])], [3, 4], settings)], lambda i, t: heard.append((i, t))
    )
    body = next(b for path, b in stand.seen if path == "/v1/completions" and b["seed"] == 3)
    assert body == {
        "model": "policy", "prompt": [5, 6], "max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "top_k": 3, "seed": 3, "n": 1,
        "stop": ["12"], "stop_token_ids": sorted(policy.format.end_ids), "logprobs": 0, "return_token_ids": True,
        "add_special_tokens": False, "skip_special_tokens": False, "include_stop_str_in_output": True, "min_p": 0.0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    }  # fmt: skip
    assert [s.ids[2:] for s in samples] == [[t for i, t in heard if i == place] for place in (0, 1)]


def test_log_probs_are_of_the_tempered_distribution(stand: Stand, sampler: VllmSampler) -> None:
    policy = trained_policy()
    for (sample,) in drawn(policy, sampler, requests(temperature=0.6)):
        ids = torch.tensor(sample.ids)
        logits = policy.logits(ids[None])[0].detach() / 0.6
        own = logits.log_softmax(-1)[:-1].gather(-1, ids[1:, None])[:, 0]
        at = sample.prompt_length
        assert sample.per_token["sampler_logprob"][at:] == pytest.approx(own[at - 1 :], abs=1e-4)


# -- weights -------------------------------------------------------------------------------------------------------------
def test_weights_are_pushed_when_they_have_changed_and_only_then(
    stand: Stand, sampler: VllmSampler, tmp_path: Path
) -> None:
    policy = trained_policy()
    drawn(policy, sampler, requests())
    drawn(policy, sampler, requests(n=2))
    control = [path for path in stand.paths() if not path.startswith("/v1")]
    assert control == ["/collective_rpc", "/reset_prefix_cache?reset_running_requests=true"] and sampler.pushes == 1
    before = fingerprint(policy)
    stir(policy)
    assert fingerprint(policy) != before
    drawn(policy, sampler, requests())
    assert sampler.pushes == 2
    assert [f.name for f in (tmp_path / "pushed").glob("weights-*/*")] == ["000002"]  # the one before is gone
    assert torch.equal(stand.model.get_input_embeddings().weight, policy.model.get_input_embeddings().weight)


def test_adapters_are_pushed_merged_and_stay_as_they_are(stand: Stand, sampler: VllmSampler) -> None:
    policy = trained_policy()
    get_weights("lora:rank=4").attach(policy, 0)
    stir(policy, 0.3)
    names = [name for name, _ in policy.named_parameters()]
    ours, theirs = drawn(policy, NativeSampler(), requests()), drawn(policy, sampler, requests())
    assert [a[0].ids for a in ours] == [b[0].ids for b in theirs]
    assert [name for name, _ in policy.named_parameters()] == names and policy.peft is not None


def test_a_server_that_has_not_taken_the_weights_is_an_error(stand: Stand, sampler: VllmSampler) -> None:
    stand.wrong["/collective_rpc"] = lambda body: None  # says that it did
    with pytest.raises(
        WhetError, match=r"other weights than the policy: after push 1 the log-probs of 8 fixed prompts differ by"
    ):
        drawn(trained_policy(), sampler, requests())
    assert not any("stop_token_ids" in body for _, body in stand.seen)  # nothing was sampled


def test_a_small_step_that_did_not_get_there_is_told_from_rounding(stand: Stand, sampler: VllmSampler) -> None:
    policy = trained_policy()
    drawn(policy, sampler, requests())
    stand.wrong["/collective_rpc"] = lambda body: None
    stir(policy, 2e-4)  # far below the tolerance
    with pytest.raises(WhetError, match=r"is stale: after push 2 .* those of the weights before"):
        drawn(policy, sampler, requests())
    del stand.wrong["/collective_rpc"]
    assert drawn(policy, sampler, requests()) and sampler.pushes == 3  # pushed again, since it was never good


def test_a_server_that_another_run_has_pushed_to_is_noticed_and_pushed_to_again(
    stand: Stand, sampler: VllmSampler
) -> None:
    policy = trained_policy()
    first = drawn(policy, sampler, requests())
    own = stand.model
    stand.model = trained_policy(steps=5).model
    with pytest.raises(WhetError, match="has other weights than the policy"):
        drawn(policy, sampler, requests())
    stand.model = own
    again = drawn(policy, sampler, requests())
    assert sampler.pushes == 2 and [[a.ids for a in unit] for unit in again] == [
        [a.ids for a in unit] for unit in first
    ]


def test_log_probs_of_another_distribution_are_an_error(stand: Stand, sampler: VllmSampler) -> None:
    stand.raw = True
    with pytest.raises(WhetError, match="--logprobs-mode processed_logprobs"):
        drawn(trained_policy(), sampler, requests())


def test_a_server_without_the_endpoints_is_told_what_it_needs(stand: Stand, sampler: VllmSampler) -> None:
    stand.wrong["/collective_rpc"] = lambda body: (404, {"detail": "Not Found"})
    with pytest.raises(WhetError, match=r"answered 404 .*start vLLM with VLLM_SERVER_DEV_MODE=1, where it can read"):
        drawn(trained_policy(), sampler, requests())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.pop("token_ids"), "without token ids and their log-probs"),
        (lambda c: c["logprobs"]["token_logprobs"].append(0.0), "without token ids and their log-probs"),
        (lambda c: c["prompt_token_ids"].insert(0, 1), "has read other tokens than it was given"),
        (lambda c: c.pop("prompt_logprobs", None), "does not tell the log-probs of a prompt's tokens"),
    ],
)  # fmt: skip
def test_replies_that_are_not_vllms(
    stand: Stand, sampler: VllmSampler, change: Callable[[Any], Any], says: str
) -> None:
    def wrong(body: dict[str, Any]) -> Any:
        found = stand.complete(body)
        change(found["choices"][0])
        return found

    stand.wrong["/v1/completions"] = wrong
    with pytest.raises(WhetError, match=says):
        drawn(trained_policy(), sampler, requests())


def test_an_answer_that_ends_where_it_may_not(stand: Stand, sampler: VllmSampler) -> None:
    policy = trained_policy()
    drawn(policy, sampler, requests())

    def cut(body: dict[str, Any]) -> Any:
        found = stand.complete({**body, "max_tokens": 2, "stop_token_ids": []})
        found["choices"][0]["finish_reason"] = "abort"
        return found

    stand.wrong["/v1/completions"] = cut
    with pytest.raises(WhetError, match=r"problem 'p\d' where it may not end, after 2 of 6 tokens \(abort\)"):
        drawn(policy, sampler, requests())


def test_nonsense_and_a_dead_server(stand: Stand, sampler: VllmSampler) -> None:
    policy = trained_policy()
    drawn(policy, sampler, requests())
    stand.wrong["/v1/completions"] = lambda body: {"choices": []}
    with pytest.raises(WhetError, match="gave what is not a completion"):
        drawn(policy, sampler, requests())
    stand.server.shutdown()
    stand.server.server_close()
    with pytest.raises(WhetError, match=r"sampler '.*' cannot be reached"):
        drawn(policy, sampler, requests())


# -- the choice ----------------------------------------------------------------------------------------------------------
def test_samplers_by_name(stand: Stand) -> None:
    for spec, name in (
        ("auto", "native"),
        ("native", "native"),
        ("huggingface", "huggingface"),
        (f"vllm:{stand.url}#x", "vllm"),
    ):
        policy = tiny_policy()
        policy.asked_sampler = spec
        assert choose_sampler(policy).name == name
    assert policy.frozen().asked_sampler == "auto"
    for spec in ("vllm", "vllm:", "vllm:localhost:8000", "hf"):
        with pytest.raises(WhetError, match=f"sampler '{spec}' is not known"):
            check_sampler(spec)


def test_fixed_prompts_are_fixed_and_all_different() -> None:
    found = fixed_prompts(320)
    assert found == fixed_prompts(320) and [len(p) for p in found] == [16] * 8
    assert len({token for prompt in found for token in prompt}) > 120 and max(map(max, found)) < 320


def test_two_steps_of_grpo_with_a_server(stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are pushed before each step's answers, the sampler's log-probs are the trainer's, and the run's greedy answers after
    training are those that the saved model gives by itself."""
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    found = launch.run("grpo", model=trained_folder(), task="parity", out=tmp_path / "run", sampler=f"vllm:{stand.url}", steps=2, batch=2,
                       group=4, lr=1e-2, test_n=4, k=0, validation_n=2, eval_every=0, others=[], threads=1, keep="last")  # fmt: skip
    rows = RunFolder(tmp_path / "run").read_metrics()
    assert [row["step"] for row in rows] == [1, 2] and found.summary["compute"]["sampled_tokens"] > 0
    mismatch = [row["mismatch"] for row in rows if "mismatch" in row]
    assert mismatch and max(mismatch) < 1e-4
    pushes = stand.paths().count("/collective_rpc")
    assert pushes == 1 + found.summary["compute"]["optimizer_steps"]
    saved = load(tmp_path / "run" / "model")
    theirs = drawn(found.policy, found.policy.sampler, requests())
    assert [a[0].ids for a in drawn(saved, NativeSampler(), requests())] == [b[0].ids for b in theirs]
