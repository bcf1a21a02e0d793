"""Episodic memory: what an answer is worth beside the answers that succeeded and failed before (Memory-R, 2504.02273).

    B_s, B_f: remembered successes and failures of the K nearest questions
    exploit = 1 - scale(|| f(a) - mean(B_s) ||)           scale: by the least and greatest of the last w raw values
    explore = scale(1 - max_{b in B_f} cos(f(a), b))

f embeds the reasoning of an answer (all of it, where it has none) and the question. Nearest questions are found exactly, by one
matrix product: the memory changes with nearly every answer, so that an index would be built again for each search.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from whet.errors import WhetError
from whet.models.embedding import Encoder, get_encoder
from whet.models.policy import Policy
from whet.rewards.reward import Attempt, Parts, Reward
from whet.tasks import Problem

# raw values that differ by less differ by rounding, which would be blown up to the whole scale: a failure written first is at
# distance 0 from itself, and in a run of failures nothing else is in the window
ALIKE = 1e-5


class Memory:
    """Embeddings of answers by the embedding of their question. Equal questions share a place; the oldest is forgotten.

    Args:
        queries: most questions.
        responses: most answers to each; the oldest is forgotten.
    """

    def __init__(self, queries: int, responses: int) -> None:
        self.queries, self.responses = queries, responses
        self._held: dict[bytes, deque[np.ndarray]] = {}  # in the order in which questions came
        self._matrix: np.ndarray | None = None

    def __len__(self) -> int:
        """How many questions it holds."""
        return len(self._held)

    def write(self, query: np.ndarray, response: np.ndarray) -> None:
        """Remember an answer (d,) to a question (d,)."""
        key = (query + 0.0).astype(np.float32).tobytes()  # + 0.0: -0 and 0 are one key
        if key not in self._held:
            if len(self._held) == self.queries:
                del self._held[next(iter(self._held))]
            self._held[key], self._matrix = deque(maxlen=self.responses), None
        self._held[key].append(response.astype(np.float32))

    def read(self, query: np.ndarray, neighbours: int = 1) -> np.ndarray:
        """(n, d) answers to the nearest questions by cosine, the older of equally near ones first; n is 0 where it is empty."""
        if not self._held:
            return np.zeros((0, len(query)), dtype=np.float32)
        if self._matrix is None:
            self._matrix = np.frombuffer(b"".join(self._held), dtype=np.float32).reshape(len(self._held), -1)
        nearest = np.argsort(-cosines(self._matrix, query), kind="stable")[:neighbours]
        lists = list(self._held.values())
        return np.stack([response for place in nearest for response in lists[place]])

    def state_dict(self) -> dict[str, Any]:
        keys = [torch.frombuffer(bytearray(key), dtype=torch.float32) for key in self._held]
        return {"queries": keys, "responses": [torch.from_numpy(np.stack(held)) for held in self._held.values()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._held, self._matrix = {}, None
        for key, responses in zip(state["queries"], state["responses"], strict=True):
            self._held[key.numpy().tobytes()] = deque(responses.numpy(), maxlen=self.responses)


class Window:
    """The last raw values of a reward, by whose least and greatest it is scaled.

    Args:
        size: how many (w), the one that is being scaled among them.
    """

    def __init__(self, size: int) -> None:
        self.values: deque[float] = deque(maxlen=size)

    def scale(self, value: float) -> float | None:
        """Take a value in; (value - min) / (max - min), or None where all values are alike."""
        self.values.append(value)
        low, high = min(self.values), max(self.values)
        return (value - low) / (high - low) if high - low > ALIKE else None


class Recall(Reward):
    """Parts `exploit`, for staying near remembered successes, and `explore`, for going away from remembered failures; each
    from 0 to its weight. A part of weight 0 is not computed, and there is no such part.

    Answers are taken in their order: each is written into the memory of its kind and then scored, so that later answers of a
    group see the earlier ones. A success is thus part of its own centroid, and a failure its own nearest neighbour: it
    never earns `explore`. With `write_first` off an answer is scored before it is written. An answer that could not be
    judged is neither written nor scored (NaN).

    Args:
        exploit, explore: weights of the two parts (beta_s, beta_e).
        encoder: `policy` (a frozen copy of the run's first one), `ngrams`, the name of a sentence model, or an Encoder.
        neighbours: nearest questions that are read (K).
        queries: most questions in a memory (N).
        responses: most answers to each (L).
        window: raw values that each part is scaled by (w).
        after: explore is 0 until so many questions have a remembered failure.
        threshold: accuracy above which an answer is a success (tau).
    """

    def __init__(
        self, exploit: float = 1.0, explore: float = 1.0, encoder: str | Encoder = "policy", *, neighbours: int = 1,
        queries: int = 10_000, responses: int = 100, window: int = 100, after: int = 500, threshold: float = 0.5,
        write_first: bool = True,
    ) -> None:  # fmt: skip
        least = {"neighbours": neighbours, "queries": queries, "responses": responses, "window": window}
        for name, value in least.items():
            if value < 1:
                raise WhetError(f"memory: {name} must be at least 1, not {value}")
        self.exploit, self.explore = float(exploit), float(explore)
        self.neighbours, self.after, self.threshold, self.write_first = neighbours, after, threshold, write_first
        self.named = encoder
        self.encode: Encoder | None = None if isinstance(encoder, str) else encoder
        self.successes, self.failures = Memory(queries, responses), Memory(queries, responses)
        self.near, self.far = Window(window), Window(window)

    def bind(self, policy: Policy) -> None:
        if isinstance(self.named, str) and (self.exploit or self.explore):
            self.encode = get_encoder(self.named, policy)

    def __call__(self, group: Sequence[Attempt]) -> list[Parts]:
        if not (self.exploit or self.explore):
            return [{} for _ in group]
        if self.encode is None:
            raise WhetError("memory: its encoder is made of the run's policy: call bind(policy) first")
        # a question is embedded alone, so that it has the same key whatever else is asked
        problems = {a.problem.id: a.problem for a in group}
        queries = {name: self.encode([question(problem)])[0] for name, problem in problems.items()}
        answers = self.encode([a.response.rationale or a.response.text for a in group])
        return [self._one(a, queries[a.problem.id], answer) for a, answer in zip(group, answers, strict=True)]

    def _one(self, attempt: Attempt, query: np.ndarray, answer: np.ndarray) -> Parts:
        if math.isnan(attempt.verdict.value):
            known = {"exploit": self.exploit, "explore": self.explore}
            return {name: math.nan for name, weight in known.items() if weight}
        if self.write_first:
            self._write(attempt, query, answer)
        parts: Parts = {}
        if self.exploit:
            parts["exploit"] = self.exploit * self._exploit(query, answer)
        if self.explore:
            parts["explore"] = self.explore * self._explore(query, answer)
        if not self.write_first:
            self._write(attempt, query, answer)
        return parts

    def _write(self, attempt: Attempt, query: np.ndarray, answer: np.ndarray) -> None:
        success = attempt.verdict.value > self.threshold
        if self.exploit if success else self.explore:  # what is not read is not kept
            (self.successes if success else self.failures).write(query, answer)

    def _exploit(self, query: np.ndarray, answer: np.ndarray) -> float:
        distance = from_centre(answer, self.successes.read(query, self.neighbours))
        if distance is None:
            return 0.0
        scaled = self.near.scale(distance)
        return 1.0 - (distance if scaled is None else scaled)

    def _explore(self, query: np.ndarray, answer: np.ndarray) -> float:
        if len(self.failures) < self.after:
            return 0.0
        novelty = unlike(answer, self.failures.read(query, self.neighbours))
        return 1.0 if novelty is None else self.far.scale(novelty) or 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"successes": self.successes.state_dict(), "failures": self.failures.state_dict(),
                "near": list(self.near.values), "far": list(self.far.values)}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"successes", "failures", "near", "far"}:
            raise WhetError("the saved state of the reward is of another reward; use the run's own reward settings")
        self.successes.load_state_dict(state["successes"])
        self.failures.load_state_dict(state["failures"])
        for window, values in ((self.near, state["near"]), (self.far, state["far"])):
            window.values.clear()
            window.values.extend(values)


def from_centre(answer: np.ndarray, remembered: np.ndarray) -> float | None:
    """Distance of an answer (d,) from the mean of remembered ones (n, d); None where there are none."""
    if not len(remembered):
        return None
    return float(np.linalg.norm(answer.astype(np.float64) - remembered.mean(0, dtype=np.float64)))


def unlike(answer: np.ndarray, remembered: np.ndarray) -> float | None:
    """1 minus the greatest cosine of an answer (d,) with remembered ones (n, d); None where there are none."""
    return 1.0 - float(cosines(remembered, answer).max()) if len(remembered) else None


def cosines(vectors: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """(n,) float64 cosines of vectors (n, d) with a vector (d,); 0 where one of the two is zero."""
    vectors, vector = vectors.astype(np.float64), vector.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vector)
    return np.divide(vectors @ vector, norms, out=np.zeros(len(vectors)), where=norms > 0)


def question(problem: Problem) -> str:
    """A problem's question as text, all turns of a conversation."""
    return "\n".join(str(turn["content"]) for turn in problem.messages) or problem.prompt
