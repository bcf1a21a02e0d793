"""ReFT's card: its six tests, by number; the warm-up as the beginning of a longer run; the two self-trainings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny import tiny_policy
from trained import trained_folder, trained_policy
from whet.advantages.estimators import token_rewards
from whet.advantages.gae import GeneralizedAdvantage
from whet.errors import WhetError
from whet.launch import resume, run
from whet.models.policy import Policy
from whet.objectives import Context, value_head
from whet.objectives.objective import Objective
from whet.recipes.recipe import get_recipe
from whet.records import Row, Sample, Segment
from whet.rewards import Attempt, partial_credit, total
from whet.sources import Bootstrapped
from whet.tasks import Problem, Response, get_task
from whet.tasks.verify import get_verifier
from whet.training.fit import Fit, Options
from whet.training.learner import Learner
from whet.training.optimizer import AdamW
from whet.training.stage import Stage

SMALL: dict[str, Any] = {"limit": 24, "warm": 2, "steps": 2, "batch": 8}


def stages(name: str = "reft", **arguments: Any) -> list[Stage]:
    return get_recipe(name)(**{**SMALL, **arguments}).stages


def answer(length: int, reward: float = 1.0, *, ended: bool = True, **tokens: Sequence[float]) -> Row:
    """A row with a response of `length` learnt tokens; per-token numbers are the learnt tokens'."""
    end = [Segment("eos", [1], learn=True, sampled=True)] if ended else []
    body = Segment("response", list(range(5, 5 + length - ended)), learn=True, sampled=True)
    sample = Sample([Segment("question", [2, 3]), *([body] if body.ids else []), *end], f"p{length}", f"g{length}")
    for name, values in tokens.items():
        sample.per_token[name] = torch.zeros(len(sample), dtype=torch.float64)
        sample.per_token[name][sample.learn_mask] = torch.tensor(values, dtype=torch.float64)
    return Row({"response": sample}, {"reward": reward, "accuracy": float(reward == 1)})


def learnt(row: Row, name: str) -> list[float]:
    sample = row["response"]
    return sample.per_token[name][sample.learn_mask].tolist()


def gradient(objective: Objective, rows: Sequence[Row], policy: Policy) -> Tensor:
    ctx = Context(rows, {"policy": policy}, objective.counts(rows))
    return flat(sum((t / n for t, n in objective.total(ctx).values()), torch.zeros(())), policy)


def flat(loss: Tensor, policy: Policy) -> Tensor:
    parameters = list(policy.trainable_parameters().values())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                      for p, g in zip(parameters, found, strict=True)])  # fmt: skip


def exact() -> Policy:
    policy = tiny_policy("gpt2", dtype=torch.float64)
    policy.modules["value"] = value_head(policy)
    return policy


# -- 1 ---------------------------------------------------------------------------------------------------------------
VALUES = (0.5, 0.6, 0.7)


@pytest.mark.parametrize(
    ("kl", "rewards", "advantages"),
    [(0.0, (0.0, 0.0, 1.0), (0.46575, 0.385, 0.3)), (0.05, (-0.01, 0.0, 1.0), (0.45575, 0.385, 0.3))],
)
def test_1_advantages_with_the_kl_in_the_reward(
    kl: float, rewards: Sequence[float], advantages: Sequence[float]
) -> None:
    estimator = stages(kl=kl)[1].advantage
    assert isinstance(estimator, GeneralizedAdvantage) and estimator.beta == kl and estimator.whiten
    given = {"old_value": VALUES, "old_logprob": (-1.0, -2.0, -3.0), "reference_logprob": (-1.2, -2.0, -3.0)}
    row = answer(3, **given)
    assert token_rewards(row, kl)[:, 0].tolist() == pytest.approx(rewards)
    estimator([row])
    if not kl:  # the card has no whitened numbers of the other
        assert learnt(row, "advantage") == pytest.approx([0.99134, 0.01709, -1.00844], abs=1e-5)
    assert learnt(row, "return") == pytest.approx([a + v for a, v in zip(advantages, VALUES, strict=True)])
    estimator.whiten = False
    estimator([row])
    assert learnt(row, "advantage") == pytest.approx(advantages)


# -- 2 ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "reward"),
    [("3+4\n#### 7", 1.0), ("#### 8", 0.1), ("I do not know", 0.0), ("", 0.0), ("#### 7.005", 1.0), ("#### 7.02", 0.1)],
)
def test_2_what_an_answer_is_worth(text: str, reward: float) -> None:
    problem, response = Problem("p", "3+4?", "7"), Response(text, text)
    attempt = Attempt(problem, response, get_verifier("number:0.01")(problem, response), 3, False)
    reft = stages()[1].reward
    assert reft is not None and total(reft([attempt])[0]) == pytest.approx(reward)
    off = stages(partial=0)[1].reward
    assert off is not None and total(off([attempt])[0]) == float(reward == 1), "without it, the verdict alone"


def test_2_a_guess_among_choices_is_paid_whatever_its_chain() -> None:
    """The paper's multiple choice, on a task of choices: the hacking that a version with numbers removes."""
    task = get_task("logic:level=5:form=choice")
    get_recipe("reft")(**SMALL).check(task)
    problem = next(p for p in task.problems("train", 20) if p.choices[0] != p.answer)
    gold, wrong = str(problem.answer), problem.choices[0]
    worth = {}
    for name, said in (("guess", gold), ("wrong", wrong), ("nothing", None)):
        response = Response(said or "", said, f"{wrong} is true.", True)
        worth[name] = Attempt(problem, response, task.verify(problem, response), 3, False)
    chain, *_ = [c for c in task.check(problem, worth["guess"].response) if c.name.startswith("step")]
    assert chain.result == "fail", "its chain is none"
    for numeric, paid in ((False, 0.1), (True, 0.0)):
        reward = stages(partial_numeric_only=numeric)[1].reward
        assert reward is not None
        assert [total(p) for p in reward(list(worth.values()))] == pytest.approx([1.0, paid, 0.0])


# -- 3 ---------------------------------------------------------------------------------------------------------------
def test_3_the_end_token_is_an_action_and_bears_the_score() -> None:
    ended, cut = answer(3), answer(3, ended=False)
    assert ended["response"].count_learnt() == cut["response"].count_learnt() == 3
    assert ended["response"].segments[-1].kind == "eos" and cut["response"].segments[-1].kind == "response"
    for row in (ended, cut):
        assert token_rewards(row)[:, 0].tolist() == [0.0, 0.0, 1.0]


def test_3_what_pads_an_answer_learns_nothing() -> None:
    """Beside a much longer one, of which it is padded to the length, an answer's gradient is its own."""
    policy, objective = exact(), stages(kl=0)[1].updates[0].loss
    policy.packs = False
    pair = [ready(answer(3, ended=e), policy) for e in (True, False)] + [ready(answer(12, 0.1), policy)]
    together = 3 * gradient(objective, pair, policy)
    apart = sum(gradient(objective, [row], policy) for row in pair)
    assert float((together - apart).norm() / apart.norm()) < 1e-10


def ready(row: Row, policy: Policy, advantage: float = 0.7) -> Row:
    """With what the loop and the estimator would have written: ratio 1, and a return that is not the value."""
    sample = row["response"]
    with torch.no_grad():
        forward = Context([row], {"policy": policy}).forward("response")
        value = policy.modules["value"](forward.hidden)[:, 0]
    for name, found in (("old_logprob", forward.logprobs.detach()), ("old_value", value), ("return", value + 0.3),
                        ("advantage", torch.full_like(value, advantage))):  # fmt: skip
        sample.per_token[name] = torch.zeros(len(sample), dtype=torch.float64)
        sample.per_token[name][sample.learn_mask] = found
    return row


# -- 4 ---------------------------------------------------------------------------------------------------------------
def test_4_each_answer_weighs_the_same_whatever_its_length() -> None:
    policy, objective = exact(), stages(kl=0)[1].updates[0].loss
    short, long = ready(answer(1), policy), ready(answer(9, 0.1), policy, advantage=-0.4)
    ctx = Context([short, long], {"policy": policy}, objective.counts([short, long]))
    loss, count = objective.total(ctx)["policy_gradient"]
    assert float(loss.detach()) / count == pytest.approx(0.5 * -0.7 + 0.5 * 0.4)


# -- 5 ---------------------------------------------------------------------------------------------------------------
def test_5_the_first_step_is_the_policy_gradient_and_the_squared_error() -> None:
    policy, stage = exact(), stages(kl=0, epochs=1)[1]
    rows = [ready(answer(n, r), policy) for n, r in ((3, 1.0), (5, 0.1), (2, 0.0))]
    assert stage.advantage is not None
    stage.advantage(rows)
    ours = gradient(stage.updates[0].loss, rows, policy)

    loss = torch.zeros((), dtype=torch.float64)
    for row in rows:  # written out, one answer at a time
        sample = row["response"]
        ids = torch.tensor([sample.ids])
        states = policy.hidden(ids)[0, :-1]
        logprobs = policy.head(states).log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        acts = sample.learn_mask[1:]
        advantage, returns = sample.per_token["advantage"][1:], sample.per_token["return"][1:]
        error = (policy.modules["value"](states)[:, 0] - returns).square()
        loss = loss + (-advantage * logprobs)[acts].mean() + 5 * 0.5 * error[acts].mean()
    plain = flat(loss / len(rows), policy)
    assert float((ours - plain).norm() / plain.norm()) < 1e-10


# -- 6 ---------------------------------------------------------------------------------------------------------------
def test_6_the_reference_is_the_warm_up_and_stays() -> None:
    policy = trained_policy()
    made = stages(steps=3, lr=3e-3)
    seen: list[tuple[float, dict[str, Tensor], dict[str, Tensor]]] = []

    def note(rows: Sequence[Row]) -> None:
        reference = dict(fit.policies["reference"].model.named_parameters())
        now = dict(policy.model.named_parameters())
        kl = max(abs(row.numbers["kl"]) for row in rows)
        seen.append((kl, *({n: p.detach().clone() for n, p in one.items()} for one in (reference, now))))

    made[1].transforms = [note]
    fit = Fit(policy, made, get_task("parity"), options=Options(seed=2))
    fit.run()
    (kl, reference, warm), *later = seen
    assert kl < 1e-5 and all(torch.equal(reference[n], warm[n]) for n in warm)
    assert any(not torch.equal(p, warm[n]) for n, p in trained_policy().model.named_parameters()), "no warm-up"
    for kl, kept, now in later:
        assert kl > 1e-5 and all(torch.equal(kept[n], reference[n]) for n in kept)
        assert any(not torch.equal(now[n], reference[n]) for n in now)


def test_6_the_value_loss_reaches_the_backbone() -> None:
    policy = exact()
    terms = {t.name: (w, t) for w, t in stages()[1].updates[0].loss.terms}
    weight, value = terms["value"]
    assert weight == 5.0
    row = ready(answer(4), policy)
    value.total(Context([row], {"policy": policy})).backward()
    assert all(bool(p.grad.any()) for p in (policy.decoder.wte.weight, policy.decoder.h[0].mlp.c_fc.weight))


# -- the warm-up -----------------------------------------------------------------------------------------------------
def rates(stage: Stage, policy: Policy | None = None) -> list[float]:
    optimizer = stage.updates[0].optimizer
    return [optimizer.scale(step, stage.steps) for step in range(stage.steps)]


def test_the_warm_up_is_the_beginning_of_the_long_run() -> None:
    """Its rates, and bit for bit its weights: the run that is 20 times as long, left after its first twentieth."""
    warm = get_recipe("reft")(limit=24, warm=4).stages[0]
    (long,) = get_recipe("sft")(limit=24, steps=80, batch=48, warmup=0.1, schedule="linear").stages
    assert rates(warm) == rates(long)[:4] and rates(warm) == [1 / 9, 2 / 9, 3 / 9, 4 / 9]
    assert max(rates(long)) == 1.0 and rates(long)[-1] < 0.02
    ours, theirs = trained_policy(steps=5), trained_policy(steps=5)
    Fit(ours, [warm], get_task("parity"), options=Options(seed=3)).run()
    left = iter(range(1, 5))
    Fit(theirs, [long], get_task("parity"), options=Options(seed=3, stop=lambda: next(left) == 4)).run()
    a, b = ours.model.state_dict(), theirs.model.state_dict()
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_a_span_is_the_schedules() -> None:
    whole = AdamW(warmup=0.1, schedule="linear")
    part = AdamW(warmup=0.1, schedule="linear", span=4.0)
    assert [part.scale(s, 10) for s in range(10)] == [whole.scale(s, 40) for s in range(10)]
    assert AdamW(schedule="cosine", span=2.0).scale(10, 10) == pytest.approx(0.55), "half-way down"
    with pytest.raises(WhetError, match=r"a schedule.s span of 0\.5 would end before its stage"):
        AdamW(span=0.5)


def test_both_stages_ask_the_same_questions() -> None:
    for name in ("reft", "online-self-training", "offline-self-training"):
        drawn = []
        for stage in stages(name):
            stage.problems.bind(get_task("parity"), 5)
            drawn.append({p.id for p in stage.problems.draw(24)})
        assert drawn[0] == drawn[1] and len(drawn[0]) == 24


# -- reft ------------------------------------------------------------------------------------------------------------
def test_its_settings_are_the_papers() -> None:
    warm, stage = get_recipe("reft")().stages
    (one, policy), (five, value) = stage.updates[0].loss.terms
    assert (one, five, stage.collect.group, stage.batch, stage.updates[0].epochs, stage.updates[0].minibatches) == (
        1.0, 5.0, 1, 32, 2, 1,
    )  # fmt: skip
    assert policy.clip == (0.2, 0.2) and value.clip == 0.2  # type: ignore[attr-defined]
    assert policy.normalise == value.normalise == "sequence"
    assert isinstance(stage.advantage, GeneralizedAdvantage)
    assert (stage.advantage.gamma, stage.advantage.lam, stage.advantage.beta) == (1.0, 0.95, 0.05)
    assert (
        stage.updates[0].optimizer.rate(7_000_000_000) == 3e-7 and warm.updates[0].optimizer.rate(7_000_000_000) == 1e-5
    )
    assert rates(stage)[:3] == [1.0, 1.0, 1.0]
    assert warm.batch == 48 and warm.updates[0].optimizer.span == 20


def test_without_partial_credit_and_kl_its_second_stage_is_ppo() -> None:
    stage = stages(partial=0, kl=0, lr=1e-3)[1]
    (ppo,) = get_recipe("ppo")(
        group=1, batch=8, steps=2, lr=1e-3, warmup=0, value_weight=5, normalise="sequence"
    ).stages
    ppo.problems = stage.problems.__class__(limit=24)
    after = []
    for one in (stage, ppo):
        policy = trained_policy()
        Fit(policy, [one], get_task("parity"), options=Options(seed=4)).run()
        after.append(policy.model.state_dict())
    assert all(torch.equal(after[0][n], after[1][n]) for n in after[0])
    start = trained_policy().model.state_dict()
    assert any(not torch.equal(after[0][n], start[n]) for n in start)


def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    """At the hand-over, and behind it: the reference is the warm-up, not what it was resumed from."""
    settings = {"model": trained_folder(), "task": "parity", "test_n": 2, "validation_n": 2, "k": 0, "others": [],
                "eval_every": 0, **SMALL, "lr": 3e-3, "kl": 0.5}  # fmt: skip
    whole = run("reft", out=tmp_path / "whole", **settings).policy.model.state_dict()
    for stop in (2, 3):
        left = iter(range(1, 9))
        run("reft", out=tmp_path / f"{stop}", stop=lambda left=left, stop=stop: next(left) == stop, **settings)
        found = resume(tmp_path / f"{stop}").policy.model.state_dict()
        assert all(torch.equal(whole[n], found[n]) for n in whole), stop


def test_settings_that_cannot_work_are_refused() -> None:
    def mine(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [0.0 for _ in completions]

    reward = partial_credit(0.3)
    with pytest.raises(WhetError, match="give partial=0 with it"):
        stages(reward=reward)
    assert stages(reward=reward, partial=0)[1].reward is reward
    with pytest.raises(WhetError, match="stage 'warm-up': steps and batch must be at least 1"):
        Fit(trained_policy(), stages(warm=0), get_task("parity"))
    with pytest.raises(WhetError, match="say how many"):
        stages("offline-self-training", limit=0)
    with pytest.raises(WhetError, match="partial credit is from 0"):
        stages(partial=1.0)


# -- self-training ---------------------------------------------------------------------------------------------------
def test_online_learns_the_right_answers_and_the_gold_chains() -> None:
    stage = stages("online-self-training", lr=0.0)[1]
    assert stage.wants() == frozenset(), "a likelihood needs no log-probs of the policy that sampled"
    policy = trained_policy("gpt2", dtype=torch.float64)
    held: list[Row] = []
    stage.transforms = [*stage.transforms, held.extend]
    Fit(policy, [stage], get_task("parity"), options=Options(seed=2)).run()
    rows = held[:8]
    right = [row for row in rows if row.numbers["accuracy"] == 1.0]
    assert 0 < len(right) < len(rows), "the answers are all right or all wrong, which shows nothing"
    assert all(row["gold"].ended and row["gold"].count_learnt() for row in rows)

    def mean(samples: Sequence[Sample]) -> Tensor:
        total, tokens = torch.zeros((), dtype=torch.float64), 0
        for s in samples:
            ids = torch.tensor([s.ids])
            logprobs = policy.head(policy.hidden(ids)[0, :-1]).log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            learns = torch.tensor([x.learn for x in s.segments for _ in x.ids])[1:]
            total, tokens = total - logprobs[learns].sum(), tokens + int(learns.sum())
        return total / tokens

    plain = 0.5 * mean([r["response"] for r in right]) + 0.5 * mean([r["gold"] for r in rows])
    ours, theirs = gradient(stage.updates[0].loss, rows, policy), flat(plain, policy)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-10


def test_online_learns_gold_alone_where_no_answer_is_right() -> None:
    stage = stages("online-self-training")[1]
    policy = trained_policy("gpt2", dtype=torch.float64)
    rows = [answer(3, reward=0.0), answer(4, reward=0.0)]
    for row in rows:
        row.samples["gold"] = answer(5)["response"]
    for transform in stage.transforms:
        transform(rows)
    objective = stage.updates[0].loss
    learner = Learner(stage.updates[0], {"policy": policy}, weights(policy), steps=1, token_budget=1000)
    found = learner.step(rows, 0, "here")
    assert found["loss/gold"] > 0 and "loss/own" not in found and found["learnt_tokens"] == 10
    assert objective.describe() == "0.5 own [token] + 0.5 gold [token]"


def weights(policy: Policy) -> Any:
    from whet.weights import Weights

    made = Weights()
    made.attach(policy, 0)
    return made


def test_offline_asks_the_warm_up_and_teaches_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Tensor]] = []
    taught: list[dict[str, Tensor]] = []
    build, init = Bootstrapped.build, Learner.__init__

    def now(policy: Policy) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in policy.model.named_parameters()}

    def spied_build(self: Bootstrapped, problems: Any, policy: Policy, scope: Any) -> list[Row]:
        asked.append(now(policy))
        return build(self, problems, policy, scope)

    def spied_init(self: Learner, update: Any, policies: Any, *args: Any, **kwargs: Any) -> None:
        taught.append(now(policies["policy"]))
        init(self, update, policies, *args, **kwargs)

    monkeypatch.setattr(Bootstrapped, "build", spied_build)
    monkeypatch.setattr(Learner, "__init__", spied_init)
    made = stages("offline-self-training", samples=8, cap=3)
    policy = trained_policy()
    base = now(policy)
    Fit(policy, made, get_task("parity"), options=Options(seed=1)).run()
    assert len(asked) == 1 and any(not torch.equal(asked[0][n], base[n]) for n in base)
    assert all(torch.equal(taught[1][n], base[n]) for n in base)
    collect = made[1].collect
    assert isinstance(collect, Bootstrapped)
    own, gold = collect.stored[:-24], collect.stored[-24:]
    assert len({r.problem_id for r in gold}) == 24 and not any(s.sampled for r in gold for s in r["response"].segments)
    counts = [sum(r.problem_id == g.problem_id for r in own) for g in gold]
    assert own and max(counts) <= 3
    assert len({(r.problem_id, tuple(r["response"].ids)) for r in own}) == len(own), "no answer twice"
    assert collect.needs == {"verifier", "demonstrations"} and collect.counts["kept"] == len(own)
