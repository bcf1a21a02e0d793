"""One or two members of each family of the menu, on one task: accuracy, what is forgotten, and what training holds.

All arms learn the same 512 sums of the micro base in equally many steps, as in corda's study; each at one of two rates, of which
validation chooses. lift, lora of rank 4, the bottleneck adapters and lora-norms train about as many entries (22 to 26 thousand of 0.5
million); lora of rank 1 and 16 are the same at a quarter and at four times as many, with one alpha / rank. A prompt of 16 tokens has 2
thousand, and norms one. `optimizer_mib` and `gradient_mib` are measured; activations, which all of them need, are in neither, and
seconds are those of a machine that others use too.

    whet reproduce peft-survey
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.study import Judgement, above, below, best, every, keeps, study

ROWS = "limit=512,batch=48,warmup=0.1"
MEMBERS = {  # weights, and two rates
    "full": ("full", "5e-4", "1e-3"),
    "norms": ("norms", "3e-3", "1e-2"),
    "lift": ("lift", "2e-3", "6e-3"),
    "bottleneck": ("bottleneck:size=28", "1e-3", "3e-3"),
    "prompt": ("prompt:tokens=16", "1e-2", "5e-2"),
    "lora-1": ("lora:rank=1", "3e-3", "1e-2"),
    "lora-4": ("lora:rank=4", "1e-3", "3e-3"),
    "lora-16": ("lora:rank=16", "1e-3", "3e-3"),
    "lora-norms": ("lora-norms:rank=4", "1e-3", "3e-3"),
}


@study(
    paper="peft-survey",
    claim="On a small model accuracy grows with the rank of adapters, masks and adapters forget less than full fine-tuning that is equally "
    "accurate, and prompt tuning lags behind.",
    arms={f"{name}{which}": f"sft:{ROWS},weights={weights},lr={rate}"
          for name, (weights, *rates) in MEMBERS.items() for which, rate in zip(("", " high"), rates, strict=True)},
    controls=["full", "full high"],
    task="chain-sum:level=3",
    model="micro",
    budget="steps:80",
    metrics=["accuracy", "forgetting", "trained_thousands", "optimizer_mib", "gradient_mib", "seconds"],
    settings={"test_n": 256, "k": 0, "validation_n": 128, "others_look_n": 64, "evaluations": 6, "keep": "last"},
    quick={"budget": "steps:4", "test_n": 32, "validation_n": 16, "others_n": 4, "others_look_n": 4, "evaluations": 2},
    full={"seeds": 5, "budget": "steps:400", "model": None, "task": "chain-sum:level=4", "test_n": 1024},
)  # fmt: skip
def peft_survey(scores: Scores) -> Judgement:
    """Reproduced if lora of rank 16 is more accurate than of rank 1; lift and lora of rank 4 each lose less accuracy on the other tasks
    than full where both are equally accurate on validation; and prompt is less accurate than full and than lora of rank 4; each at the
    rate with the better validation accuracy at the end, and with the whole 95 % interval of the difference; not reproduced if one of
    these intervals lies on the other side; else inconclusive. The others are reported and decide nothing."""
    arm = {name: best(scores, name, f"{name} high") for name in MEMBERS}
    return every(
        above(scores, "accuracy", arm["lora-16"], arm["lora-1"]),
        *(keeps(scores, arm[name], arm["full"]) for name in ("lift", "lora-4")),
        *(below(scores, "accuracy", arm["prompt"], arm[name]) for name in ("full", "lora-4")),
    )
