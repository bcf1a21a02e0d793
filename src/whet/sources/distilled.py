"""Distilled traces along two axes: how many prompts, and how many responses to each (2506.13284, section on data scaling)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.records import Row
from whet.sampling.sampler import SamplingSettings
from whet.seeds import seed_for
from whet.sources.collector import Scope, Stored, trim
from whet.sources.problems import Problems
from whet.sources.rollouts import ask, judge_all
from whet.tasks import Problem, Step

TRIES = 4  # answers a teacher gives for each one that is wanted: some are wrong, some are alike


class Distilled(Stored):
    """Traces of so many prompts, at most so many different ones of each, learnt in epochs.

    Rows of a file that ask the same are traces of one prompt; those of a task are its own rationales, one a prompt. What is
    missing is asked of the teacher, whose right answers are kept. Its compute is not part of the run's.

    Args:
        prompts: different prompts; 0 takes one epoch of a source that ends.
        responses: traces of each, at most.
        teacher: another model, or the name of one; None asks nobody.
        longer: share of the prompts that is kept, those with the longest traces; the short ones are mostly easy.
        temperature: of the teacher's answers.
    """

    needs = frozenset({"demonstrations"})

    def __init__(
        self, prompts: int = 0, responses: int = 1, teacher: Policy | str | None = None, longer: float = 1.0,
        temperature: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if prompts < 0 or responses < 1 or not 0 < longer <= 1:
            raise WhetError(f"distilled: no negative prompts, at least one response, and longer in (0, 1], not {prompts}, "
                            f"{responses} and {longer:g}")  # fmt: skip
        self.prompts, self.responses, self.longer, self._heat = prompts, responses, longer, temperature
        self.teacher = teacher
        if teacher:
            self.needs = frozenset({"demonstrations", "verifier"})

    def build(self, problems: Problems, policy: Policy, scope: Scope) -> list[Row]:
        n = problems.size or self.prompts
        if not n:
            raise WhetError(
                f"task '{scope.task.spec()}' has no end: say how many of its prompts are learnt (prompts=1000)"
            )
        traces: dict[str, list[Problem]] = {}
        for problem in problems.draw(n):
            traces.setdefault(problem.prompt, []).append(problem)
        kept = [own[: self.responses] for own in traces.values()][: self.prompts or None]
        if self.teacher:
            kept = self._more(kept, scope)
        elif self.responses > max(map(len, kept)):
            raise WhetError(f"distilled: {self.responses} responses to a prompt are wanted, and the rows have at most "
                            f"{max(map(len, kept))}; name a teacher that gives more")  # fmt: skip
        kept.sort(key=lambda own: -max(len(p.rationale) for p in own))  # stable: ties stay as they were drawn
        chosen = kept[: max(1, round(self.longer * len(kept)))]
        rows = [
            Row({"response": trim(policy.format.demonstration(p), policy.max_length)}) for own in chosen for p in own
        ]
        self.counts = {"prompts": len(chosen), "dropped, short": len(kept) - len(chosen), "traces": len(rows)}
        return rows

    def _more(self, kept: Sequence[Sequence[Problem]], scope: Scope) -> list[list[Problem]]:
        """Traces of the teacher behind those that are there, until there are enough different ones of each prompt."""
        if isinstance(self.teacher, str):
            from whet.models.base import load

            self.teacher = load(self.teacher)
        assert self.teacher is not None
        asked = [own[0] for own in kept]
        settings = SamplingSettings(scope.task.max_answer_tokens(), self._heat)
        answers = ask(self.teacher, asked, settings, TRIES * self.responses, seed_for(scope.seed, "teacher"))
        found = []
        for own, samples, verdicts in zip(
            kept, answers, judge_all(scope.task, asked, self.teacher, answers), strict=True
        ):
            told = {(p.rationale, p.answer): p for p in own}
            for sample, verdict in zip(samples, verdicts, strict=True):
                response = self.teacher.format.read(sample)
                if verdict.value == 1.0 and response.ended and response.answer and len(told) < self.responses:
                    steps = tuple(Step(text) for text in response.rationale.splitlines())
                    key = (response.rationale, response.answer)
                    told.setdefault(key, replace(own[0], steps=steps, answer=response.answer))
            found.append(list(told.values()))
        return found
