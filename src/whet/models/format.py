"""Format: problem -> segments, and sampled token ids -> segments again.

Training, sampling and evaluation share this one renderer and extractor. Three styles:

- `tags`: the shipped base. Its tokenizer has a token for each tag: `<think> steps </think><answer> 12 </answer>`.
- `chat`: a tokenizer with a chat template. The response is text; the answer follows the last `Answer:`.
- `plain`: any other tokenizer. The prompt, a line break, the response; the answer as in `chat`.

A response may plan first: `<plan> steps </plan><execute> values </execute><answer> ...`, in text a plan that `Execution:` ends.
What ends the plan belongs to it, so that the last token of its segment is the one where it ends.

Where a response lacks the answer's tag, `fallback` decides: "missing" (the response has no answer; verifiers call it
unparseable) or "raw" (the whole text is the answer and the verifier looks in it).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from whet.errors import WhetError
from whet.records import Sample, Segment
from whet.tasks.problem import Problem, Response

Style = Literal["tags", "chat", "plain"]

TAGS = {"think": "rationale", "plan": "plan", "execute": "execution", "answer": "answer", "tool": "tool",
        "thought": "thought", "critique": "critique"}  # fmt: skip
ANSWER_MARK = "Answer:"
PLAN_END = "Execution:"
CACHED = 1 << 18  # tokens of texts that are kept encoded: a few MiB, however long the texts and the run


class Format:
    """Renders and reads.

    Args:
        tokenizer: a Hugging Face tokenizer.
        style: one of `tags`, `chat`, `plain`; None chooses by what the tokenizer has.
        fallback: what a response without an answer tag means; None: "missing" for tags, "raw" otherwise.
        end_ids: tokens that end a response besides the tokenizer's end token.

    Attributes:
        condition: the text under which the policy answers: what a method that announces the kind of each response taught it
            to announce for good ones. It is saved with the model; "" where there is none.
    """

    def __init__(
        self,
        tokenizer: Any,
        style: Style | None = None,
        fallback: Literal["raw", "missing"] | None = None,
        end_ids: Sequence[int] = (),
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise WhetError("the model's tokenizer has no end token; set its eos_token, or the model can never stop")
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        tagged = all(t in vocabulary for t in ("<think>", "</think>", "<answer>", "</answer>"))
        self.style: Style = style or ("tags" if tagged and "<user>" in vocabulary else
                                      "chat" if tokenizer.chat_template else "plain")  # fmt: skip
        self.fallback = fallback or ("missing" if self.style == "tags" else "raw")
        self._backend = _backend(tokenizer)
        self.eos_id: int = tokenizer.eos_token_id
        self.end_ids = {self.eos_id, *end_ids}
        self.condition = ""
        self._bos = self._leading()
        if self.style == "tags":
            self._open = {vocabulary[f"<{t}>"]: k for t, k in TAGS.items() if f"<{t}>" in vocabulary}
            self._close = {vocabulary[f"</{t}>"]: k for t, k in TAGS.items() if f"</{t}>" in vocabulary}
            self._tag = {kind: tag for tag, kind in TAGS.items()}
        self._cache: dict[str, array[int]] = {}
        self._cached = 0  # tokens in it

    # -- text -> ids ------------------------------------------------------------------------------------------------
    def encode(self, text: str) -> list[int]:
        """Token ids of `text` alone, without special tokens at its ends (tags in it become their tokens)."""
        found = self._cache.get(text)
        if found is None:
            found = self.tokenizer.encode(text, add_special_tokens=False)
            if self._cached + len(found) <= CACHED:
                self._cache[text] = array("i", found)
                self._cached += len(found)
        return list(found)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, tags shown, end tokens not."""
        keep = [i for i in ids if i not in self.end_ids]
        if self._backend is not None:
            return self._backend.decode(keep, skip_special_tokens=False)
        return self.tokenizer.decode(keep, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def prompt(self, problem: Problem, hint: str | None = None, condition: str | None = None) -> list[Segment]:
        """The segments before the response.

        Args:
            hint: text put behind the question (rationalisation).
            condition: what is announced in front of the response; None is the format's own, "" is nothing.
        """
        messages = [self._turn(m) for m in problem.messages] or [{"role": "user", "content": problem.prompt}]
        if hint:
            messages[-1]["content"] += hint
        if self.style == "plain":
            ids = self._bos + self.encode("\n".join(m["content"] for m in messages) + "\n")
        elif self.style == "chat":
            ids = self._templated(messages, problem.id)
        else:
            turns = "".join(f"<{m['role']}>{m['content']}" for m in messages)
            ids = self._bos + self.encode(turns + "<assistant>")
        told = self.condition if condition is None else condition
        return [Segment("question", list(ids)), *([self.announcement(told)] if told else [])]

    def announcement(self, condition: str) -> Segment:
        """A condition as the tokens that stand directly before a response; they are no part of it."""
        return Segment("condition", self.encode(condition if self.style == "tags" else f"{condition}\n"))

    def response(
        self, rationale: str, answer: str | None, *, end: bool = True, learn: bool = True, tags: bool = True,
        kind: str = "rationale",
    ) -> list[Segment]:  # fmt: skip
        """The segments of a given response: rationale (may be empty), answer, end token.

        `kind` is the rationale's (`critique`, `plan` ...). With `tags` off, `answer` is a whole response that is taken as it stands.
        """
        parts: list[tuple[str, str]] = []
        if not tags:
            parts.append(("response", answer or ""))
        elif self.style == "tags":
            if rationale:
                parts.append((kind, f"<{self._tag[kind]}>{rationale}</{self._tag[kind]}>"))
            if answer is not None:
                parts.append(("answer", f"<answer>{answer}</answer>"))
        else:
            if rationale:
                parts.append((kind, rationale + ("\n" if answer is not None else "")))
            if answer is not None:  # an answer alone needs no mark, unless one without it cannot be read again
                marked = rationale or self.fallback == "missing"
                parts.append(("answer", f"{ANSWER_MARK} {answer}" if marked else answer))
        segments = [Segment(kind, self.encode(text), learn=learn) for kind, text in parts]
        return segments + ([self.eos(learn=learn)] if end else [])

    def planned(self, plan: str, execution: str, answer: str) -> list[Segment]:
        """The segments of a given response that plans first: plan, execution, answer, end token, all learnt."""
        if self.style == "tags":
            parts = [("plan", f"<plan>{plan}</plan>"), ("execution", f"<execute>{execution}</execute>"),
                     ("answer", f"<answer>{answer}</answer>")]  # fmt: skip
        else:
            parts = [
                ("plan", f"{plan}\n{PLAN_END}"),
                ("execution", f"\n{execution}\n"),
                ("answer", f"{ANSWER_MARK} {answer}"),
            ]
        return [*(Segment(kind, self.encode(text), learn=True) for kind, text in parts), self.eos()]

    @property
    def plan_end(self) -> str:
        """What ends a plan: a stop string for those who draw plans alone."""
        return "</plan>" if self.style == "tags" else PLAN_END

    def scored(self, rationale: str, answer: str) -> list[Segment]:
        """A response of which the answer's own words alone are learnt: their likelihood is the score of a choice.

        Marks and end token are the same for all choices and are left out.
        """
        if self.style == "tags":
            parts = [("rationale", f"<think>{rationale}</think>"), ("prefix", "<answer>"), ("answer", answer)]
        else:
            parts = [("rationale", f"{rationale}\n"), ("prefix", ANSWER_MARK), ("answer", f" {answer}")]
        return [
            Segment(kind, self.encode(text), learn=kind == "answer") for kind, text in parts[0 if rationale else 1 :]
        ]

    def start(self) -> list[int]:
        """What stands before a plain text: the tokenizer's leading tokens, or its end token."""
        return list(self._bos) or [self.eos_id]

    def eos(self, *, learn: bool = True, sampled: bool = False) -> Segment:
        return Segment("eos", [self.eos_id], learn=learn, sampled=sampled)

    def demonstration(self, problem: Problem, *, rationale: bool = True, answer_first: bool = False) -> Sample:
        """A problem with its gold response, which is learnt."""
        if problem.answer is None:
            raise WhetError(f"problem '{problem.id}' has no answer to learn from")
        response = self.response(problem.rationale if rationale else "", problem.answer)
        if answer_first:
            if self.style != "tags":  # in text the answer is what follows its mark, to the end
                raise WhetError(f"an answer before its rationale cannot be read again in the style '{self.style}'; it takes a "
                                "model with tags, such as the shipped base")  # fmt: skip
            response.sort(key=lambda s: ("answer", "rationale", "eos").index(s.kind))
        segments = self.prompt(problem) + response
        return Sample(segments, problem_id=problem.id, group_id=problem.id)

    # -- ids -> segments --------------------------------------------------------------------------------------------
    def cut(self, ids: Sequence[int]) -> list[Segment]:
        """Cut a sampled response into segments (learnt, sampled); what stands in no tag is of kind `response`."""
        body, end = (ids[:-1], ids[-1:]) if ids and ids[-1] in self.end_ids else (ids, [])
        segments = self._cut_tags(body) if self.style == "tags" else self._cut_text(body)
        if end:
            segments.append(Segment("eos", list(end), learn=True, sampled=True))
        return segments

    def read(self, sample: Sample) -> Response:
        """The response of a sample as text, cut into rationale and answer."""
        segments = [s for s in sample.segments if (s.learn or s.sampled or s.kind == "prefix") and s.kind != "eos"]
        ids = [i for s in segments for i in s.ids]
        if any(s.kind in ("response", "prefix") for s in segments):  # not cut yet, or cut around a prefix
            segments = self.cut(ids)
        text = self.decode(ids)
        answers = [s for s in segments if s.kind == "answer"]
        thoughts = [(s.kind, self._inner(s)) for s in segments if s.kind in ("rationale", "plan", "execution")]
        rationale = "\n".join(text for _, text in thoughts)
        plan, execution = ("\n".join(t for k, t in thoughts if k == kind) for kind in ("plan", "execution"))
        if answers:
            answer: str | None = self._inner(answers[-1])
        else:
            answer = text if self.fallback == "raw" else None
        return Response(text, answer, rationale, sample.ended, plan, execution)

    # -- inside -----------------------------------------------------------------------------------------------------
    def _turn(self, message: Mapping[str, str]) -> dict[str, str]:
        """A turn of the conversation. One that is given as `rationale` and `answer` reads as a response does."""
        if "answer" not in message:
            return dict(message)
        response = self.response(message.get("rationale", ""), message["answer"], end=False)
        return {"role": message["role"], "content": "".join(self.decode(s.ids) for s in response)}

    def _templated(self, messages: list[dict[str, str]], problem_id: str) -> list[int]:
        """The conversation by the tokenizer's chat template: a program that came with the model and may fail in any way."""
        try:
            ids = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as problem:
            roles = ", ".join(m["role"] for m in messages)
            raise WhetError(f"problem '{problem_id}': the model's chat template refuses its messages ({roles}): {problem}; change "
                            "their roles, or the tokenizer's chat_template") from problem  # fmt: skip
        if not ids:
            raise WhetError(f"problem '{problem_id}': the model's chat template makes nothing of its messages; mend the "
                            "tokenizer's chat_template")  # fmt: skip
        return ids

    def _leading(self) -> list[int]:
        """Special tokens that the tokenizer itself puts before a text."""
        plain = self.tokenizer.encode("a", add_special_tokens=False)
        full = self.tokenizer.encode("a", add_special_tokens=True)
        start = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
        return list(full[:start])

    def _inner(self, segment: Segment) -> str:
        if self.style == "tags":
            return self.decode([i for i in segment.ids if i not in self._open and i not in self._close])
        text = self.decode(segment.ids).strip()
        if segment.kind == "plan":
            return text.removesuffix(PLAN_END).rstrip()
        return text.removeprefix(ANSWER_MARK).strip() if segment.kind == "answer" else text

    def _cut_tags(self, ids: Sequence[int]) -> list[Segment]:
        """An answer or rationale counts only when its tag was closed; an unclosed tag is a plain `response`."""
        segments: list[Segment] = []
        loose: list[int] = []
        position = 0
        while position < len(ids):
            kind = self._open.get(ids[position])
            stop = next((j for j in range(position + 1, len(ids)) if self._close.get(ids[j]) == kind), None)
            if kind is None or stop is None:
                loose.append(ids[position])
                position += 1
                continue
            if loose:
                segments.append(Segment("response", loose, learn=True, sampled=True))
                loose = []
            segments.append(Segment(kind, list(ids[position : stop + 1]), learn=True, sampled=True))
            position = stop + 1
        if loose:
            segments.append(Segment("response", loose, learn=True, sampled=True))
        return segments

    def _cut_text(self, ids: Sequence[int]) -> list[Segment]:
        """Plan and execution (or rationale) and answer, by their marks; what has no mark is a plain `response`."""
        text = self.decode(ids)
        at = text.rfind(ANSWER_MARK)
        marked = text.find(PLAN_END, 0, at if at >= 0 else None)
        answer = self._reach(ids, at) if at >= 0 else len(ids)
        # the mark belongs to the plan: the shortest prefix whose text has all of it
        plan = min(self._reach(ids, marked + len(PLAN_END) - 1) + 1, answer) if marked >= 0 else 0
        thought = "execution" if plan else "rationale" if at >= 0 else "response"
        parts = [("plan", ids[:plan]), (thought, ids[plan:answer]), ("answer", ids[answer:])]
        return [Segment(kind, list(part), learn=True, sampled=True) for kind, part in parts if part]

    def _reach(self, ids: Sequence[int], length: int) -> int:
        """The most leading ids whose text has at most `length` characters."""
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if len(self.decode(ids[:middle])) <= length else (low, middle - 1)
        return low


def _backend(tokenizer: Any) -> Any:
    """What a plain fast tokenizer calls to decode, after it has asked of each id several times what it is; else None."""
    from transformers import PreTrainedTokenizerFast as Fast

    kind = type(tokenizer)
    plain = isinstance(tokenizer, Fast) and kind.decode is Fast.decode and kind._decode is Fast._decode
    return tokenizer.backend_tokenizer if plain else None
