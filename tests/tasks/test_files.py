"""Tasks read from files: the shapes of rows, the errors, the splits."""

from __future__ import annotations

import json
import os
import warnings

import pytest

from whet.errors import WhetError
from whet.tasks import Problem, Response, Step, get_task, split_of
from whet.tasks.files import FileTask, is_file_spec, read_files
from whet.tasks.rows import problem_of


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sums(n: int, start: int = 0) -> list[dict]:
    return [{"prompt": f"What is {i}+1?", "answer": i + 1} for i in range(start, start + n)]


def row(**fields) -> Problem:
    return problem_of(fields, "f:1")


USER = {"role": "user", "content": "What colour is the sky?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def says(text: str) -> dict:
    return {"role": "assistant", "content": text}


# -- rows ------------------------------------------------------------------------------------------------------------
def test_plain_row():
    problem = row(
        prompt=" 2+3? ", answer=5, rationale="2+3=5\n\n so 5 ", level=2, category="sum", source="mine", answer2=None
    )
    assert problem == Problem("", "2+3?", "5", level=2, category="sum", data={"source": "mine"},
                              steps=(Step("2+3=5"), Step("so 5")))  # fmt: skip


def test_chat_row_learns_the_last_assistant_message():
    problem = row(messages=[SYSTEM, USER, says("Blue."), {"role": "user", "content": "Sure?"}, says("Yes.")])
    assert problem.answer == "Yes."
    assert problem.prompt == "Sure?"
    assert [m["content"] for m in problem.messages] == ["Be brief.", USER["content"], "Blue.", "Sure?"]
    assert row(messages=[USER], answer="blue").messages == (USER,)
    assert row(messages=[USER]).answer is None


def test_a_demonstration_beside_an_answer_is_its_rationale():
    problem = row(messages=[USER, says("Light scatters.\nSo it is blue.")], answer="blue")
    assert (problem.answer, problem.rationale) == ("blue", "Light scatters.\nSo it is blue.")
    assert row(prompt="q", completion="blue", answer="blue").rationale == ""
    assert row(prompt="q", completion="long", answer="a", rationale="own").rationale == "own"


def test_prompt_completion_rows():
    plain = row(prompt="The sky is", completion=" blue.")
    assert (plain.prompt, plain.answer, plain.messages) == ("The sky is", "blue.", ())
    chat = row(prompt=[USER], completion=[says("It is blue.")])
    assert (chat.prompt, chat.answer, chat.messages) == (USER["content"], "It is blue.", (USER,))
    only = row(prompt=[SYSTEM, USER])
    assert (only.prompt, only.answer, only.messages) == (USER["content"], None, (SYSTEM, USER))


def test_text_parts_of_a_message_are_joined():
    assert (
        row(
            messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
        ).prompt
        == "ab"
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, ("The sky is", "blue.", "green.")),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, ("The sky is", "blue.", "green.")),
        ({"chosen": "The sky is blue.", "rejected": "The sky is black."}, ("The sky is", "blue.", "black.")),
        ({"chosen": "Q\nA: 12", "rejected": "Q\nA: 13"}, ("Q\nA:", "12", "13")),
        ({"prompt": [USER], "chosen": [says("blue")], "rejected": [says("green")]}, (USER["content"], "blue", "green")),
        ({"chosen": [USER, says("blue")], "rejected": [USER, says("green")]}, (USER["content"], "blue", "green")),
        ({"prompt": "x", "chosen": [USER, says("blue")], "rejected": [USER, says("green")]},
        (USER["content"], "blue", "green")),
        ({"prompt": "x", "chosen": [says("blue")], "rejected": [says("green")]}, ("x", "blue", "green")),
        ({"prompt": [USER], "chosen": "blue", "rejected": "green"}, (USER["content"], "blue", "green")),
    ],
)  # fmt: skip
def test_preferences(fields, expected):
    problem = row(**fields)
    assert (problem.prompt, problem.chosen, problem.rejected) == expected
    assert problem.answer is None


@pytest.mark.parametrize("answer", ["red", "B", 1])
def test_a_choice_is_given_by_text_letter_or_index(answer):
    assert row(prompt="q", choices=["blue", "red"], answer=answer).answer == "red"


def test_an_answer_that_is_a_choice_is_no_index():
    assert row(prompt="q", choices=[3, 1, 2], answer=1).answer == "1"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": "q", "answer": "a"}, r"field 'prompt' is missing \(fields: question, answer\)"),
        ({}, r"field 'prompt' is missing \(fields: none\)"),
        ({"prompt": None, "answer": "a"}, "field 'prompt' is missing"),
        ({"prompt": "  ", "answer": "a"}, "field 'prompt' is empty"),
        ({"prompt": 7}, "field 'prompt' must be a text, not the number 7"),
        ({"prompt": []}, "field 'prompt' must be a list .* not an empty list"),
        ({"prompt": "q", "answer": ["a"]}, "field 'answer' must be a text or a number, not a list"),
        ({"prompt": "q", "answer": True}, "field 'answer' must be a text or a number, not true/false"),
        ({"prompt": "q", "answer": ""}, "field 'answer' is empty"),
        ({"prompt": "q", "answer": "a", "rationale": ["x"]}, "field 'rationale' must be a text, not a list"),
        ({"prompt": "q", "level": "hard"}, "field 'level' must be a whole number from 1"),
        ({"prompt": "q", "level": 0}, "field 'level' must be a whole number from 1"),
        ({"prompt": "q", "level": True}, "field 'level' must be"),
        ({"prompt": "q", "category": 3}, "field 'category' must be a text"),
        ({"prompt": "q", "choices": "ab"}, "field 'choices' must be a list"),
        ({"prompt": "q", "choices": ["a"]}, "two or more"),
        ({"prompt": "q", "choices": ["a", "a"]}, "same choice twice"),
        ({"prompt": "q", "choices": ["a", "b"], "answer": "c"}, "'c', none of the 2 choices"),
        ({"prompt": "q", "choices": ["x", "y"], "answer": 2}, "none of the 2 choices"),
        ({"prompt": "q", "choices": ["x", "y"], "answer": -1}, "none of the 2 choices"),
        ({"messages": []}, "field 'messages' must be a list"),
        ({"messages": "hi"}, "field 'messages' must be a list .* not a text"),
        ({"messages": ["hi"]}, "message 1 of field 'messages'"),
        ({"messages": [{"content": "x"}]}, "message 1 of field 'messages'"),
        ({"messages": [USER, {"role": "assistant", "content": None}]},
        r"'messages\[1\]\.content' must be a text, not null"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, r"'messages\[0\]\.content'"),
        ({"messages": [says("x")]}, "no user message"),
        ({"messages": [SYSTEM, says("x")]}, "no user message"),
        ({"prompt": [USER], "completion": [USER]}, "must end with an assistant message"),
        ({"prompt": "q", "chosen": "a"}, "field 'rejected' is missing"),
        ({"prompt": "q", "rejected": "a"}, "field 'chosen' is missing"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "are equal"),
        ({"prompt": "q", "chosen": "a", "rejected": [says("b")]}, "both be texts or both lists"),
        ({"chosen": "a b", "rejected": "c d"}, "begin differently"),
        ({"chosen": [USER, says("a"), USER, says("b")], "rejected": [USER, says("c")]}, "one assistant message"),
        ({"prompt": "q", "completion": "c", "label": False}, "unpaired preference"),
        ({"prompt": "q", "completions": ["a"], "labels": [True]}, "stepwise supervision"),
        ({"text": "The sky is blue."}, "running text"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_named(fields, message):
    with pytest.raises(WhetError, match=r"^f:1: .*" + message):
        problem_of(fields, "f:1")


# -- files -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "a", }', "not valid JSON at column"),
        (b"prompt: a", "not valid JSON at column 1"),
        (b'["a", "b"]', "a row must be an object"),
        (b'{"prompt": "a", "answer": NaN}', "NaN is not a JSON value"),
        (b'{"prompt": "a", "answer": ' + b"9" * 5000 + b"}", "not JSON that can be read"),
        (b"[" * 100_000, "not JSON that can be read|not valid JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b'{"answer": "a"}', "field 'prompt' is missing"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_with_file_and_number(tmp_path, line, message):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'{"prompt": "ok", "answer": "1"}\n\n' + line + b"\n")
    with pytest.raises(WhetError, match=rf"mine\.jsonl:3: .*({message})"):
        read_files(str(path))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(WhetError, match=r"not there; name a \.jsonl"):
        read_files(str(tmp_path / "gone.jsonl"))
    with pytest.raises(WhetError, match="is a folder"):
        read_files(str(tmp_path))
    (tmp_path / "a.csv").write_text("prompt,answer")
    with pytest.raises(WhetError, match=r"is not a \.jsonl or \.json file"):
        read_files(str(tmp_path / "a.csv"))
    for name, text in (("empty.jsonl", ""), ("blank.jsonl", "\n\n"), ("list.json", "[]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(WhetError, match="has no rows"):
            read_files(str(tmp_path / name))
    (tmp_path / "broken.json").write_text('[{"prompt": "a"},\n')
    with pytest.raises(WhetError, match=r"broken\.json: not valid JSON at line 2"):
        read_files(str(tmp_path / "broken.json"))


def test_which_specs_are_files(tmp_path):
    assert is_file_spec("mine.jsonl")
    assert is_file_spec("x/y.json")
    assert is_file_spec("hub:org/name")
    assert is_file_spec(str(tmp_path))
    assert not is_file_spec("chain-sum")


def test_hash_split_is_a_partition_by_prompt(tmp_path):
    path = write(tmp_path / "sums.jsonl", sums(300) + sums(300))  # every prompt twice
    task = get_task(path)
    assert isinstance(task, FileTask)
    found = {split: task.problems(split) for split in ("train", "validation", "test")}
    assert sum(map(len, found.values())) == 600
    prompts = {split: {p.prompt for p in problems} for split, problems in found.items()}
    assert sum(map(len, prompts.values())) == 300
    assert all(split_of(p) == split for split, ps in prompts.items() for p in ps)
    assert {s: len(p) for s, p in prompts.items()} == {"train": 243, "validation": 25, "test": 32}  # the hash is fixed
    assert len({p.id for ps in found.values() for p in ps}) == 600
    assert "split 80/10/10" in task.description
    assert task.spec() == path
    assert task.name == "sums"


def test_problems_pages_through_the_file_in_order(tmp_path):
    task = read_files(write(tmp_path / "sums.jsonl", sums(100)))
    whole = task.problems("train")
    assert task.problems("train", 5, start=3) == whole[3:8]
    assert task.problems("train", 1000, start=70) == whole[70:]
    assert task.problems("train", 3, start=1000) == []
    assert task.problems("train", seed=5) == whole
    assert [int(p.id.rsplit("/", 1)[1]) for p in whole] == sorted(int(p.id.rsplit("/", 1)[1]) for p in whole)
    first = whole[0]
    assert first.id == f"sums/train/{int(first.prompt[8:-3]) + 1}"
    assert task.where(first) == f"{tmp_path}/sums.jsonl:{first.id.rsplit('/', 1)[1]}"


def test_a_byte_order_mark_windows_lines_and_no_last_newline(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"prompt": f"é{i}", "answer": i}, ensure_ascii=False) for i in range(40)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    task = read_files(str(path))
    assert sum(len(task.problems(s)) for s in ("train", "validation", "test")) == 40
    assert {p.prompt for p in task.problems("train")} <= {f"é{i}" for i in range(40)}


def test_only_offsets_are_kept(tmp_path):
    task = read_files(write(tmp_path / "sums.jsonl", sums(50)))
    places = task._places["train"]
    assert places.handles.itemsize * len(places.handles) == 8 * len(task.problems("train"))
    (tmp_path / "sums.jsonl").write_text("{}")
    os.utime(tmp_path / "sums.jsonl", (0, 0))
    with pytest.raises(WhetError, match="changed while it was in use"):
        task.problems("train")


def test_a_json_list_and_json_lines_in_a_json_file(tmp_path):
    rows = sums(60)
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    listed = read_files(str(tmp_path / "list.json"))
    lines = read_files(write(tmp_path / "lines.json", rows))
    assert [p.prompt for p in listed.problems("train")] == [p.prompt for p in lines.problems("train")]
    assert listed.fingerprint == lines.fingerprint
    assert listed.where(listed.problems("train")[0]).endswith("list.json: row 1")


def test_named_files_make_the_splits(tmp_path):
    main = write(tmp_path / "train.jsonl", sums(50))
    dev = write(tmp_path / "dev.jsonl", sums(7, 100))
    held = write(tmp_path / "held.jsonl", sums(9, 200))
    task = read_files(main, validation=dev, test=held)
    assert [len(task.problems(s)) for s in ("train", "validation", "test")] == [50, 7, 9]
    assert task.problems("test")[0].id == "train/test/1"
    assert task.where(task.problems("test")[0]) == f"{held}:1"
    one = read_files(main, test=held)  # validation is still hashed; what hashes to test is train
    assert len(one.problems("test")) == 9
    assert {p.prompt for p in one.problems("validation")} == {
        r["prompt"] for r in sums(50) if split_of(r["prompt"]) == "validation"
    }
    assert len(one.problems("train")) + len(one.problems("validation")) == 50
    with pytest.raises(WhetError, match=r"held2\.jsonl' is not there"):
        read_files(main, test=str(tmp_path / "held2.jsonl"))


def test_a_prompt_of_a_held_out_file_is_left_out_of_train(tmp_path):
    main, held = write(tmp_path / "a.jsonl", sums(30)), write(tmp_path / "b.jsonl", sums(10, 25))
    with pytest.warns(UserWarning, match="left out 5 rows"):
        task = read_files(main, validation=write(tmp_path / "c.jsonl", sums(3, 900)), test=held)
    assert len(task.problems("train")) == 25
    assert len(task.problems("test")) == 10


def test_a_conversation_of_one_user_turn_is_the_same_question_as_its_text(tmp_path):
    rows = [r for i in range(40) for r in (
        {"prompt": f"q{i}", "answer": "a"},
        {"messages": [{"role": "user", "content": f"q{i}"}, says("a")]})]  # fmt: skip
    task = read_files(write(tmp_path / "a.jsonl", rows))
    prompts = [{p.prompt for p in task.problems(s)} for s in ("train", "validation", "test")]
    assert sum(map(len, prompts)) == 40


def test_an_empty_split_says_what_to_do(tmp_path):
    train_only = [r for r in sums(20) if split_of(r["prompt"]) == "train"][:3]
    task = read_files(write(tmp_path / "few.jsonl", train_only))
    assert len(task.problems("train")) == 3
    with pytest.raises(WhetError, match=r"few\.jsonl' has no test problems .*train 3, validation 0, test 0.*--test"):
        task.problems("test", 5)


def test_conflicting_answers_are_only_warned_about(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        [{"prompt": "q", "answer": "1"}, {"prompt": "q", "answer": "2"}, {"prompt": "r", "answer": "1"}],
    )
    with pytest.warns(UserWarning, match=r"1 prompts have rows with different answers, the first at .*a\.jsonl:2"):
        read_files(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_files(write(tmp_path / "b.jsonl", [{"prompt": "q", "answer": "1"}] * 2))


def test_the_fingerprint_is_of_the_rows_and_their_files(tmp_path):
    a = write(tmp_path / "a.jsonl", sums(20))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(r, separators=(" ,", " :")) for r in sums(20)))
    assert read_files(a).fingerprint == read_files(str(tmp_path / "b.jsonl")).fingerprint
    changed = [*sums(19), {"prompt": "What is 19+1?", "answer": 21}]
    assert read_files(write(tmp_path / "c.jsonl", changed)).fingerprint != read_files(a).fingerprint


# -- verifier and provides -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rows", "name", "provided"),
    [
        (sums(4), "number", {"verifier", "demonstrations"}),
        ([*sums(4), {"prompt": "Who?", "answer": "Ann"}], "exact", {"verifier", "demonstrations"}),
        ([{"prompt": "a", "answer": "1,000", "rationale": "x"}, {"prompt": "b", "answer": "50%", "rationale": "y"}],
        "number",
         {"verifier", "demonstrations", "rationales"}),
        ([{"prompt": "a", "answer": "1", "rationale": "x"}, {"prompt": "b", "answer": "2"}], "number",
        {"verifier", "demonstrations"}),
        ([{"prompt": "a", "choices": ["1", "2"], "answer": 0}], "choice", {"verifier", "demonstrations", "choices"}),
        ([{"prompt": "a", "completion": "text"}], "exact", {"verifier", "demonstrations"}),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "", {"preferences"}),
        ([{"prompt": "a", "chosen": "b", "rejected": "c", "answer": "b"}], "exact",
        {"preferences", "verifier", "demonstrations"}),
        ([{"prompt": "a"}, {"prompt": "b", "answer": "5"}], "number", set()),
        ([{"prompt": "a"}], "", set()),
    ],
)  # fmt: skip
def test_the_default_verifier_and_what_a_file_provides(tmp_path, rows, name, provided):
    task = read_files(write(tmp_path / "a.jsonl", rows))
    assert task.verifier_name == name
    assert task.provides() == provided


def test_the_verifier_judges_and_a_named_one_replaces_it(tmp_path):
    path = write(tmp_path / "a.jsonl", sums(20))
    task, strict = read_files(path), read_files(path, verifier="exact")
    problem = task.problems("train", 1)[0]
    text = f"{problem.answer}.0"
    assert task.verify(problem, Response(text, text)).value == 1.0
    assert strict.verify(problem, Response(text, text)).value == 0.0
    assert strict.verifier_name == "exact"
    with pytest.raises(WhetError, match="unknown verifier"):
        read_files(path, verifier="exakt")


def test_rows_without_an_answer_cannot_be_verified_but_by_a_function(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "q"}])
    with pytest.raises(WhetError, match="rows have no answer"):
        read_files(path).verify(Problem("p", "q"), Response("x", "x"))
    (tmp_path / "judge.py").write_text("def f(problem, response): return 'x' in response.text")
    task = read_files(path, verifier=f"{tmp_path}/judge.py:f")
    assert task.verify(Problem("p", "q"), Response("x", "x")).value == 1.0
    assert task.provides() == {"verifier"}


def test_the_answer_budget_follows_the_longest_row(tmp_path):
    assert read_files(write(tmp_path / "a.jsonl", sums(3))).max_answer_tokens() == 64
    rows = [{"prompt": "q", "answer": "1" * 100, "rationale": "x" * 300}]
    assert read_files(write(tmp_path / "b.jsonl", rows)).max_answer_tokens() == 424


# -- Hub data sets ---------------------------------------------------------------------------------------------------
def test_a_local_data_set_with_its_own_splits(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "numbers"
    folder.mkdir()
    write(folder / "train.jsonl", sums(60))
    write(folder / "test.jsonl", sums(5, 500))
    task = read_files(f"hub:{folder}")
    assert [p.answer for p in task.problems("test")] == ["501", "502", "503", "504", "505"]
    assert len(task.problems("train")) + len(task.problems("validation")) == 60
    assert task.name == "numbers"
    assert task.problems("train", 1)[0].task == "numbers"
    assert task.where(task.problems("test")[1]) == f"hub:{folder} [test]: row 2"
    assert task.spec() == f"hub:{folder}"


def test_a_data_set_that_is_not_there(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WhetError, match="cannot be loaded"):
        read_files(f"hub:{tmp_path}/empty")


def test_without_the_library_the_extra_is_named(monkeypatch):
    def missing(name: str):
        raise ImportError(name)

    monkeypatch.setattr("whet.tasks.files.importlib.import_module", missing)
    with pytest.raises(WhetError, match=r"pip install 'whet\[data\]'"):
        read_files("hub:org/name")
