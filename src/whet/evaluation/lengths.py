"""How long a policy's sampled answers are, and how they go on: what rewards of length and repetition are about."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from whet.models.policy import Policy
from whet.rewards.repetition import repeated_share
from whet.sampling.sampler import SamplingSettings
from whet.sources import Answering, ask, judge_all
from whet.tasks import Problem, Task

# words of second thoughts; `back` is how the shipped tasks' searches return to an earlier point
REFLECTION = re.compile(r"\b(?:wait|recheck|alternatively|retry|however|back)\b", re.IGNORECASE)


class Lengths(Answering):
    """The policy answers by itself, and its sampled answers to the test problems are measured.

    | metric | of sampled answers |
    |---|---|
    | `sampled_tokens` | mean length in tokens, end token included |
    | `tokens_right`, `tokens_wrong` | the same of right and of wrong ones |
    | `cut_off` | share that the budget cut off |
    | `repetition` | mean share of n-grams of tokens that the answer has had before |
    | `reflections` | mean number of words of second thoughts (wait, recheck, back ...) |

    Args:
        ngram: n.
        samples: answers to each problem, at temperature 1.
        max_new_tokens: generation budget, the one of training; 0 asks the task.
    """

    def __init__(self, ngram: int = 5, samples: int = 2, max_new_tokens: int = 0) -> None:
        self.ngram, self.samples, self.max_new_tokens = ngram, samples, max_new_tokens

    def measure(self, policy: Policy, task: Task, problems: Sequence[Problem]) -> Mapping[str, float]:
        settings = SamplingSettings(self.max_new_tokens or task.max_answer_tokens(), temperature=1.0)
        answers = ask(policy, problems, settings, self.samples, 0)
        verdicts = [v for row in judge_all(task, problems, policy, answers) for v in row]
        samples = [s for row in answers for s in row]
        lengths = [sum(len(segment.ids) for segment in s.segments if segment.sampled) for s in samples]
        judged = list(zip(lengths, verdicts, strict=True))
        found = {
            "sampled_tokens": lengths,
            "tokens_right": [n for n, v in judged if v.value == 1.0],
            "tokens_wrong": [n for n, v in judged if v.value < 1.0],
            "cut_off": [float(not s.ended) for s in samples],
            "repetition": [repeated_share(s.response, self.ngram) for s in samples],
            "reflections": [len(REFLECTION.findall(policy.format.read(s).text)) for s in samples],
        }
        # a kind of answer that there is none of has no mean, and no number
        return {name: sum(values) / len(values) for name, values in found.items() if values}
