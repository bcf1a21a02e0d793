"""DRIFT's gradients, by the paper's numbers and by what each mode leaves alone; what is matched; where in a step it happens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tiny import KINDS, tiny_model, tiny_policy
from trained import trained_folder
from whet.errors import WhetError
from whet.models.policy import Policy
from whet.objectives import nll
from whet.records import Row, Sample, Segment
from whet.training.learner import Learner
from whet.training.optimizer import AdamW
from whet.training.stage import Update
from whet.weights import Lora, Masked, Weights, get_weights
from whet.weights.bent import MODES, Bent, bend, difference, stored, strengths
from whet.weights.lisa import Lisa
from whet.weights.selectors import Top, chance

ANSWERS = ([8, 9], [10, 11, 12], [13])
ROWS = [Row({"response": Sample([Segment("question", [5, 6, 7]), Segment("answer", a, learn=True)])}) for a in ANSWERS]
G, D = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])
QKVO_AND_MLP = 2 * 7  # in two blocks


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def expert(kind: str = "qwen3", dtype: torch.dtype = torch.float32, **config: Any) -> dict[str, Tensor]:
    return weights_of(tiny_model(kind, dtype, seed=1, **config))


def learner(weights: Weights, dtype: torch.dtype = torch.float32, budget: int = 10_000, clip: float = 0.0) -> Learner:
    policy = tiny_policy(dtype=dtype)
    policy.packs = False
    weights.attach(policy, 0)
    weights.at_stage_start(policy)
    update = Update(nll(), optimizer=AdamW(lr=1e-2), clip=clip)
    return Learner(update, {"policy": policy}, weights, steps=50, token_budget=budget)


def gradients(made: Learner) -> dict[str, Tensor]:
    """Of one step, as the optimizer would see them but for clipping."""
    made.accumulate(ROWS, 0)
    made.weights.after_grads(made.parameters)
    made.weights.mask(made.parameters)
    return {n: p.grad.clone() for n, p in made.parameters.items() if p.grad is not None}


# -- the equations -------------------------------------------------------------------------------------------------------
def test_the_papers_example() -> None:
    for mode, expected in (("absolute", [2.0, 4.0]), ("grad-norm", [-2.0, 4.0]), ("adaptive", [-1.0, 4.0])):
        torch.testing.assert_close(bend(G, D, 1.0, mode), torch.tensor(expected))
    torch.testing.assert_close(bend(G, D, 0.5), torch.tensor([1.0, 4.0]))
    torch.testing.assert_close(bend(G[:, None], D[:, None]), torch.tensor([[-1.0], [4.0]]))  # flattened


def test_away_is_cancelled_and_towards_is_left() -> None:
    d = torch.tensor([3.0, 4.0])
    assert torch.equal(bend(2 * d, d), torch.zeros(2))
    assert torch.equal(bend(-2 * d, d), -2 * d)
    wide = torch.randn(40, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(bend(0.3 * wide, wide).norm()) < 1e-12
    torch.testing.assert_close(bend(-0.3 * wide, wide), -0.3 * wide)


@pytest.mark.parametrize("mode", MODES)
def test_no_strength_no_direction_and_no_gradient(mode: str) -> None:
    assert torch.equal(bend(G, D, 0.0, mode), G)
    assert torch.equal(bend(G, torch.zeros(2), 1.0, mode), G)
    found = bend(torch.zeros(2), D, 1.0, mode)
    assert torch.equal(found, -D if mode == "absolute" else torch.zeros(2))
    assert bend(G.bfloat16(), D, 1.0, mode).dtype == torch.bfloat16


def test_only_absolute_sees_the_directions_norm() -> None:
    for mode in MODES:
        same = torch.allclose(bend(G, D + 0.5, 1.0, mode), bend(G, 7 * (D + 0.5), 1.0, mode), atol=1e-6)
        assert same == (mode != "absolute"), mode


def test_a_step_goes_towards_the_expert() -> None:
    """Orthogonal: <W, D> rises by lr alpha/2 |g| |D|. The sign of the paper's alpha."""
    lr, alpha = 0.1, 0.8
    w, g, d = (torch.tensor(x, dtype=torch.float64) for x in ([1.0, 1.0, 1.0], [0.0, 3.0, 4.0], [2.0, 0.0, 0.0]))
    parameter = nn.Parameter(w.clone())
    parameter.grad = bend(g, d, alpha)
    torch.optim.SGD([parameter], lr=lr).step()
    assert float((parameter.detach() - w) @ d) == pytest.approx(lr * alpha / 2 * 5 * 2, rel=1e-12)


# -- in a model ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_of_a_step(mode: str) -> None:
    bent = learner(Bent(expert, alpha=0.7, mode=mode))
    plain = gradients(learner(Weights()))
    found = gradients(bent)
    weights: Any = bent.weights
    assert len(weights.directions) == QKVO_AND_MLP and all(
        ".norm" not in n and "embed" not in n for n in weights.directions
    )
    other, own = expert(), weights_of(tiny_model())
    for name, g in plain.items():
        d = other[name] - own[name]
        d = d * own[name].norm() / d.norm()
        wanted = bend(g, d, 0.7, mode) if name in weights.directions else g
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(found[name], g) or name not in weights.directions


def test_no_strength_is_fine_tuning_to_the_bit() -> None:
    ended = []
    for weights in (
        Weights(),
        Bent(expert, alpha=0.0),
        Bent(expert, alpha=0.0, micro=True),
        Bent(expert, modules="mlp=0"),
    ):
        made = learner(weights, clip=1.0)
        for step in range(2):
            made.step(ROWS, step, "step")
        ended.append(weights_of(made.policy.model))
    assert all(torch.equal(ended[0][n], other[n]) for other in ended[1:] for n in other)


def test_once_a_step_and_not_once_a_micro_batch() -> None:
    """Bent once, the gradient does not depend on the split; bent in each backward it does, and is the same where there is one."""
    double = torch.float64

    def made(micro: bool, budget: int) -> dict[str, Tensor]:
        return gradients(learner(Bent(lambda: expert(dtype=double), micro=micro), double, budget))

    whole, split = made(False, 10_000), made(False, 6)
    each_whole, each = made(True, 10_000), made(True, 6)
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(each_whole[name], whole[name], rtol=1e-10, atol=1e-12)
    name = next(n for n in whole if "q_proj" in n)
    assert not torch.allclose(each[name], whole[name], rtol=1e-3)


def test_hooks_of_micro_batches_end_with_the_stage() -> None:
    made = learner(Bent(expert, micro=True, modules="attn"))
    weights: Any = made.weights
    assert len(weights.hooks) == len(weights.directions) == 2 * 4
    weights.at_stage_end(made.policy)
    plain = gradients(learner(Weights()))
    found = gradients(made)
    assert not weights.hooks and all(torch.equal(found[n], g) for n, g in plain.items())


def test_the_norm_that_is_clipped_is_of_the_bent_and_masked_gradient() -> None:
    made = learner(Bent(expert, inside=Masked(Top(chance, 0.2))), clip=1.0)
    found = made.step(ROWS, 0, "step")
    again = gradients(learner(Bent(expert, inside=Masked(Top(chance, 0.2)))))
    assert found["grad_norm"] == pytest.approx(float(torch.stack([g.norm() for g in again.values()]).norm()), rel=1e-5)
    before, after = weights_of(tiny_model()), weights_of(made.policy.model)
    moved = {n: (before[n] != after[n]).float().mean() for n in before}
    inside: Any = made.weights
    chosen = inside.inside.selection
    assert all(float(moved[n]) <= float(m.float().mean()) + 1e-6 for n, m in chosen.items())
    assert all(moved[n] == 0 for n in before if n not in chosen)


@pytest.mark.parametrize("direction", ["reverse", "random"])
def test_controls_have_the_same_norm(direction: str) -> None:
    found: list[Mapping[str, Tensor]] = []
    for towards in ("expert", direction):
        weights: Any = learner(Bent(expert, mode="absolute", rescale=False, direction=towards)).weights
        found.append(weights.directions)
    for name, d in found[0].items():
        other = found[1][name]
        assert float(other.norm()) == pytest.approx(float(d.norm()), rel=1e-4)
        cosine = float((other.flatten() @ d.flatten()) / d.norm() ** 2)
        assert cosine == pytest.approx(-1.0, abs=1e-4) if direction == "reverse" else abs(cosine) < 0.2


def test_rescaled_directions_are_as_long_as_the_weights() -> None:
    weights: Any = learner(Bent(expert, mode="absolute")).weights
    own = weights_of(tiny_model())
    assert all(float(d.norm()) == pytest.approx(float(own[n].norm()), rel=1e-4) for n, d in weights.directions.items())


def test_merging_is_task_arithmetic_of_what_is_matched() -> None:
    made = learner(Bent(expert, merge=0.3, modules="mlp"))
    own, other = weights_of(tiny_model()), expert()
    weights: Any = made.weights
    for name, now in weights_of(made.policy.model).items():
        wanted = own[name] + 0.3 * (other[name] - own[name]) if name in weights.directions else own[name]
        torch.testing.assert_close(now, wanted)
    plain: Any = learner(Bent(expert, modules="mlp")).weights
    assert all(torch.equal(d, plain.directions[n]) for n, d in weights.directions.items())


def test_the_state_holds_the_direction() -> None:
    bent = learner(Bent(expert))
    other = tiny_policy()
    again = Bent(dict)  # the expert is gone
    again.attach(other, 0)
    again.load_state_dict(bent.weights.state_dict())
    made = Learner(Update(nll()), {"policy": other}, again, steps=2, token_budget=10_000)
    other.packs = False
    first, second = gradients(bent), gradients(made)
    assert all(torch.equal(first[n], second[n]) for n in first)


# -- what is matched -----------------------------------------------------------------------------------------------------
def test_shapes_that_differ_are_left_out_and_prefixes_looked_through() -> None:
    own, other = weights_of(tiny_model()), expert(intermediate_size=48)
    delta = difference(own, {f"model.language_{n}" if n.startswith("model.") else n: w for n, w in other.items()})
    assert {n for n in own if n not in delta} == {n for n in own if ".mlp." in n}
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(delta.dense(name), other[name] - own[name])


def test_a_bias_that_one_lacks_is_zero_and_others_are_left_out() -> None:
    own, other = weights_of(tiny_model("qwen2")), expert("llama")  # which has no biases of q, k and v
    bias = "model.layers.0.self_attn.q_proj.bias"
    with torch.no_grad():
        own[bias].fill_(0.5)
    delta = difference(own, other)
    torch.testing.assert_close(delta.dense(bias), -own[bias])
    assert not [n for n in difference(other, own) if n.endswith("bias")]
    short = {**other, bias: torch.zeros(3)}
    assert bias not in difference(own, short)


def test_two_priors() -> None:
    own, grpo, sft = weights_of(tiny_model()), expert(), weights_of(tiny_model(seed=2))
    delta = difference(own, grpo, sft)
    for name in delta:
        torch.testing.assert_close(delta.dense(name), grpo[name] - sft[name])


def test_vision_towers_keep_their_gradients() -> None:
    model: Any = tiny_model()
    model.visual = nn.Linear(4, 4)
    model.vision_mlp = nn.Linear(4, 4)
    found = strengths(model, "full")
    assert len(found) == len(list(model.parameters())) - 4 and not [n for n in found if "vis" in n]
    with pytest.raises(WhetError, match="the model has none"):
        strengths(model, "visual")


@pytest.mark.parametrize("kind", KINDS)
def test_presets(kind: str) -> None:
    model = tiny_model(kind)
    parts = {which: set(strengths(model, which)) for which in ("attn", "mlp", "norm", "embed")}
    assert all(parts.values()) and sum(map(len, parts.values())) == len(set().union(*parts.values())), "no overlap"
    assert set().union(*parts.values()) | set(strengths(model, "head")) <= set(strengths(model, "full"))
    assert set(strengths(model, "attn;mlp")) == parts["attn"] | parts["mlp"]


def test_tied_heads_are_bent_once() -> None:
    model = tiny_model(tie_word_embeddings=True)
    assert list(strengths(model, "embed;head")) == ["model.embed_tokens.weight"]


def test_strengths_by_pattern() -> None:
    found = strengths(tiny_model(), r"attn;mlp=0.5;layers[.]1[.].*q_proj=2")
    assert found["model.layers.0.self_attn.q_proj.weight"] == 1 and found["model.layers.1.self_attn.q_proj.weight"] == 2
    assert found["model.layers.0.mlp.up_proj.weight"] == 0.5


# -- from the menu, and what is refused ----------------------------------------------------------------------------------
def test_from_the_menu_and_from_a_folder() -> None:
    folder = trained_folder()
    weights: Any = get_weights(
        f"drift:expert={folder},mode=absolute,modules=attn=0.5;mlp,rescale=false,inside=random:density=0.1"
    )
    policy: Policy = tiny_policy(style="tags")
    weights.attach(policy, 0)
    weights.at_stage_start(policy)
    name = "model.layers.0.self_attn.q_proj.weight"
    wanted = stored(folder)()[name] - dict(policy.model.named_parameters())[name].detach()
    torch.testing.assert_close(weights.directions[name], wanted)
    assert weights.strengths[name] == 0.5 and weights.name == "drift, random"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"mode": "adaptiv"}, "did you mean 'adaptive'"),
        ({"direction": "up"}, "direction"),
        ({"alpha": -1.0}, "direction=reverse"),
        ({"rescale": False}, "leave rescale=false out"),
        ({"inside": Lora()}, "lora does not train"),
        ({"inside": Lisa(), "micro": True}, "moves others later"),
    ],
)
def test_it_refuses(given: dict[str, Any], told: str) -> None:
    with pytest.raises(WhetError, match=told):
        Bent(expert, **given)


def test_it_refuses_an_expert_that_tells_nothing() -> None:
    with pytest.raises(WhetError, match="name it, as in drift:expert=FOLDER"):
        get_weights("drift")
    with pytest.raises(WhetError, match="nothing in the expert matches"):
        learner(Bent(lambda: expert("gpt2")))
    with pytest.raises(WhetError, match="there is no direction"):
        learner(Bent(lambda: weights_of(tiny_model())))
    with pytest.raises(WhetError, match="a preset or a regular expression"):
        strengths(tiny_model(), "attn=much")
