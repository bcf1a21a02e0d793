"""Loading gives tensors and settings: pickled weights, code beside a model and ways out of a folder are refused in one line.

Whatever would run leaves a canary file; none may appear.
"""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))

import harness

from trained import trained_folder
from whet import cli
from whet.errors import WhetError
from whet.models import base, trust
from whet.models.embedding import Sentences
from whet.report import read
from whet.runs import RunFolder
from whet.terminal.doctor import shapes
from whet.training import checkpoint
from whet.weights.delta import WeightDelta, open_model
from whet.weights.files import Stored


class Evil:
    """What makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path: Path):
    """A file that nothing may make."""
    file = tmp_path / "canary"
    yield file
    assert not file.exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder of one's own."""
    return Path(shutil.copytree(trained_folder(), tmp_path / "model"))


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def pickled(folder: Path, stem: str = "model", name: str = "pytorch_model.bin", evil: Path | None = None) -> Path:
    """The folder with its weights pickled, and with an object in it that makes a file."""
    weights: dict[str, Any] = dict(load_file(folder / f"{stem}.safetensors"))
    (folder / f"{stem}.safetensors").unlink()
    torch.save({**weights, **({"evil": Evil(evil)} if evil else {})}, folder / name)
    return folder


def adapters(folder: Path, tmp_path: Path) -> Path:
    """LoRA adapters on the folder's model."""
    from peft import LoraConfig, get_peft_model

    policy = base.load(folder, device="cpu")
    out = tmp_path / "adapters"
    get_peft_model(policy.model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(out)
    rewrite(out / "adapter_config.json", base_model_name_or_path=str(folder))
    policy.tokenizer.save_pretrained(out)
    return out


def test_the_canary_would_appear(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


# -- pickles -----------------------------------------------------------------------------------------------------------
READERS: dict[str, Callable[[Path], object]] = {
    "load": lambda f: base.load(f, device="cpu"), "stored": Stored, "merge": open_model, "encoder": lambda f: Sentences(str(f)),
    "doctor": lambda f: shapes(str(f)),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.pt", "model.pth"]
)
def test_pickled_weights_are_refused_with_the_remedy(folder: Path, canary: Path, name: str, reader: str) -> None:
    with pytest.raises(WhetError, match=rf"{name}.*safetensors, by whet.load.*--allow-pickle"):
        READERS[reader](pickled(folder, name=name, evil=canary))


def test_allowed_pickles_are_read_as_tensors(folder: Path, canary: Path) -> None:
    good = base.weights_hash(base.load(folder, device="cpu").model)
    pickled(folder)
    assert base.weights_hash(base.load(folder, device="cpu", allow_pickle=True).model) == good


def test_allowed_pickles_run_no_code(folder: Path, canary: Path) -> None:
    with pytest.raises(WhetError, match="could not be loaded"):
        base.load(pickled(folder, evil=canary), device="cpu", allow_pickle=True)


def test_pickled_adapters_are_refused_though_their_base_is_good(folder: Path, canary: Path, tmp_path: Path) -> None:
    made = pickled(adapters(folder, tmp_path), "adapter_model", "adapter_model.bin", canary)
    for read_them in (lambda: base.load(made, device="cpu"), lambda: WeightDelta.load(made), lambda: open_model(made)):
        with pytest.raises(WhetError, match=r"adapter_model.bin.*--allow-pickle"):
            read_them()
    with pytest.raises(WhetError, match="could not be loaded"):
        base.load(made, device="cpu", allow_pickle=True)


def test_adapters_on_a_pickled_base_are_refused(folder: Path, canary: Path, tmp_path: Path) -> None:
    made = adapters(folder, tmp_path)
    pickled(folder, evil=canary)
    with pytest.raises(WhetError, match=r"pytorch_model.bin.*--allow-pickle"):
        base.load(made, device="cpu")


def test_a_checkpoint_of_a_run_holds_no_objects(canary: Path, tmp_path: Path) -> None:
    made = checkpoint.save(tmp_path / "checkpoints", 1, {"w": torch.ones(1)}, {"a": 1})
    torch.save({"a": Evil(canary)}, made / "state.pt")
    checkpoint.seal(made)  # a digest that is right proves nothing of who wrote it
    with pytest.raises(WhetError, match="cannot be read"):
        checkpoint.load(made)


def test_no_module_loads_pickles_or_runs_texts() -> None:
    """By what stands in the code: `torch.load` is always `weights_only`, and nothing else reads objects."""
    source = Path(base.__file__).parents[1]
    for file in source.rglob("*.py"):
        for number, text in enumerate(file.read_text().splitlines(), 1):
            where = f"{file.name}:{number}: {text}"
            assert "torch.load(" not in text or "weights_only=True" in text, where
            for word in (
                "pickle.load",
                "yaml.load(",
                "yaml.unsafe",
                "np.load(",
                "joblib",
                "marshal.load",
                "shelve.",
                "shell=True",
            ):
                assert word not in text, where


# -- code of a model's own ---------------------------------------------------------------------------------------------
def with_code(folder: Path, canary: Path, kind: str) -> Path:
    """The folder with modules of its own, which make a file as they are imported."""
    (folder / "modeling_evil.py").write_text(f"import pathlib; pathlib.Path({str(canary)!r}).touch()\n"
                                             "from transformers import Qwen3Config as EvilConfig, Qwen3ForCausalLM as EvilModel\n")  # fmt: skip
    names = {"AutoConfig": "modeling_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.EvilModel"}
    rewrite(folder / "config.json", auto_map=names, model_type=kind)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"import pathlib; pathlib.Path({str(canary)!r}).touch()\n")
    return folder


@pytest.mark.parametrize("reader", ["load", "doctor", "encoder"])
def test_code_of_an_unknown_type_is_refused(
    folder: Path, canary: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # Transformers asks the terminal where it was told nothing
    with pytest.raises(WhetError, match=r"code of its own.*--trust-remote-code"):
        READERS[reader](with_code(folder, canary, "evil"))


def test_of_a_known_type_the_code_is_left_out(folder: Path, canary: Path) -> None:
    policy = base.load(with_code(folder, canary, "qwen3"), device="cpu")
    assert type(policy.model).__module__.startswith("transformers.")


def test_code_runs_where_it_is_asked_for(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag does what it says, so that the tests above refuse something that works."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **kw: seen.update(kw) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        base.load(with_code(folder, tmp_path / "x", "evil"), device="cpu", trust_remote_code=True)
    assert seen["trust_remote_code"] is True and seen["use_safetensors"] is True


def test_code_of_a_tokenizer_is_refused(folder: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (folder / "tokenization_evil.py").write_text(
        f"import pathlib; pathlib.Path({str(canary)!r}).touch()\nclass Evil: pass\n"
    )
    rewrite(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]},
        tokenizer_class="Evil",
    )
    try:
        made = base.load(folder, device="cpu").tokenizer
    except WhetError:
        return
    assert type(made).__module__.startswith("transformers.")  # or it is left out, where Transformers can do without


@pytest.mark.parametrize("asked", ["evil/kernel", {"": "evil/kernel"}])
def test_a_kernel_of_the_hub_is_code(folder: Path, asked: object) -> None:
    rewrite(folder / "config.json", attn_implementation=asked)
    with pytest.raises(WhetError, match=r"kernel of the Hub.*--trust-remote-code"):
        base.load(folder, device="cpu")


def test_a_template_of_a_chat_reaches_no_objects(folder: Path, canary: Path) -> None:
    rewrite(folder / "whet.json", style="chat")
    (folder / "chat_template.jinja").write_text(
        "{{ cycler.__init__.__globals__.os.system('touch " + str(canary) + "') }}{{ messages[0].content }}"
    )
    with pytest.raises(WhetError, match="chat template"):
        base.load(folder, device="cpu").format.prompt(whet_problem())


def whet_problem() -> Any:
    from whet.tasks import Problem

    return Problem("p", "parity 12", "0")


# -- ways out of a folder ----------------------------------------------------------------------------------------------
OUTSIDE = [
    "../secret.safetensors",
    "/etc/passwd",
    "a/../../secret.safetensors",
    "..\\secret.safetensors",
    "C:\\secret",
    "..",
    "",
    "a\0b",
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("reader", ["load", "stored"])
def test_an_index_names_files_beside_it(folder: Path, tmp_path: Path, name: str, reader: str) -> None:
    shutil.move(folder / "model.safetensors", tmp_path / "secret.safetensors")
    weights = dict.fromkeys(load_file(tmp_path / "secret.safetensors"), name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    with pytest.raises(WhetError, match="no file beside it"):
        READERS[reader](folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_an_index_that_is_none(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    for reader in ("load", "stored"):
        with pytest.raises(WhetError, match=r"index\.json"):
            READERS[reader](folder)


@pytest.mark.parametrize("name", [None, 3, "", ["a"], "http://127.0.0.1/model", "a\0b", "../../nowhere"])
def test_adapters_name_a_base(folder: Path, tmp_path: Path, name: object) -> None:
    made = adapters(folder, tmp_path)
    rewrite(made / "adapter_config.json", base_model_name_or_path=name)
    for read_them in (lambda: base.load(made, device="cpu"), lambda: open_model(made), lambda: shapes(str(made))):
        with pytest.raises(WhetError):
            read_them()


def test_a_checkpoint_cuts_only_what_grows(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    for name in ("../precious", str(tmp_path / "precious"), "run.yaml"):
        with pytest.raises(WhetError, match="no file that grows"):
            run.rewind({name: 0})
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_cell_names_no_folder_elsewhere(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
    from report_folders import make_comparison, make_run

    made = make_comparison(tmp_path / "compared")
    make_run(tmp_path / "secret")
    cell = sorted((made / "cells").glob("*.json"))[0]
    rewrite(cell, key="k10/../../../secret")
    with pytest.raises(WhetError, match="cannot be read"):
        read.read(made)


# -- files that lie ----------------------------------------------------------------------------------------------------
def header(length: int, text: bytes = b"{}", rest: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + text + rest


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LIES = {
    "a huge header": header(2**63 - 1), "a header of 99 MB": header(99_000_000), "nothing": b"", "half a length": b"\x08\0",
    "no JSON": header(2, b"{{"), "a list": header(2, b"[]"),
    "data beyond the end": header(len(t := json.dumps({"w": {**ENTRY, "data_offsets": [0, 1 << 40]}}).encode()), t),
    "offsets backwards": header(len(t := json.dumps({"w": {**ENTRY, "data_offsets": [8, 0]}}).encode()), t, b"\0" * 8),
    "a shape that overflows": header(len(t := json.dumps({"w": {**ENTRY, "shape": [2**62, 2**62]}}).encode()), t, b"\0" * 8),
    "a type that is none": header(len(t := json.dumps({"w": {**ENTRY, "dtype": "X1"}}).encode()), t, b"\0" * 8),
    "a pickle": pickle.dumps({"a": 1}),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_safetensors_that_lie(folder: Path, lie: str) -> None:
    (folder / "model.safetensors").write_bytes(LIES[lie])
    for reader in ("load", "stored"):
        with pytest.raises(WhetError):
            READERS[reader](folder)


def test_a_zip_of_pickles_that_is_called_safetensors(folder: Path, canary: Path) -> None:
    torch.save({"evil": Evil(canary)}, folder / "model.safetensors")
    assert zipfile.is_zipfile(folder / "model.safetensors")
    for reader in ("load", "stored"):
        with pytest.raises(WhetError):
            READERS[reader](folder)


def test_a_difference_whose_note_is_none(tmp_path: Path) -> None:
    for note in ("{", "[]", '{"w": 3}', '{"w": ["a"]}'):
        save_file({"w/values": torch.ones(2)}, tmp_path / "delta.safetensors", {"whet-delta": note})
        with pytest.raises(WhetError, match="note cannot be read"):
            WeightDelta.load(tmp_path)


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['touch {}']", "recipe: !!python/name:os.system"])
def test_a_config_makes_no_objects(tmp_path: Path, canary: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(text.format(canary))
    with pytest.raises(SystemExit):
        cli.main(["run", str(tmp_path / "run.yaml")])
    assert "cannot be read" in capsys.readouterr().err


# -- the flags ---------------------------------------------------------------------------------------------------------
def test_the_flags_reach_the_loader(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pickled(folder)
    small = [
        "--task",
        "parity",
        "--test-n",
        "2",
        "--k",
        "0",
        "--others",
        "none",
        "--eval-every",
        "0",
        "--threads",
        "1",
        "--quiet",
    ]
    words = ["run", "sft", "batch=2", "steps=1", *small, "--model", str(folder), "--out", str(tmp_path / "run")]
    for refused in (words, ["ask", str(folder), "parity 1"], ["eval", str(folder), "--task", "parity", "--n", "2"],
                    ["doctor", "--model", str(folder)], ["show-batch", "sft", "--model", str(folder)]):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            cli.main(refused)
        assert ended.value.code == 2
        if refused is not words:
            with pytest.raises(SystemExit) as ended:
                cli.main([*refused, "--allow-pickle"])
            assert ended.value.code == 0
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--allow-pickle"])
    assert ended.value.code == 0
    kept = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert (kept["allow_pickle"], kept["trust_remote_code"]) == (True, False)
    assert trust.pickled(tmp_path / "run" / "model") == []  # what comes out is safetensors


# -- servers -----------------------------------------------------------------------------------------------------------
def watched(heard: Path) -> Callable[[], None]:
    """Let a child note what it binds, and what it unpickles."""

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.bind", "pickle.find_class"):
            with heard.open("a") as out:
                out.write(f"{event} {arguments[1:]}\n")

    return lambda: sys.addaudithook(hear)


def test_a_run_binds_no_port_and_unpickles_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["run", "grpo", "batch=2", "group=2", "steps=1", "--task", "parity", "--test-n", "2", "--k", "2", "--others", "none",
             "--eval-every", "0", "--threads", "1", "--quiet", "--model", trained_folder(), "--out", str(out)]  # fmt: skip
    ended = harness.whet(words, tmp_path / "log", watched(tmp_path / "heard"))
    assert ended.code == 0, ended.err
    shutil.rmtree(out / "model")
    (out / "summary.json").unlink()
    ended = harness.whet(["run", "--resume", str(out)], tmp_path / "log", watched(tmp_path / "heard"))
    assert ended.code == 0, ended.err
    assert not (tmp_path / "heard").exists(), (tmp_path / "heard").read_text()


def test_what_is_heard(tmp_path: Path) -> None:
    """The ear hears: a child that unpickles and binds."""

    def bind_and_unpickle() -> None:
        watched(tmp_path / "heard")()
        pickle.loads(pickle.dumps(Path("x")))
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))

    harness.whet(["--version"], tmp_path / "log", bind_and_unpickle)
    assert {line.split()[0] for line in (tmp_path / "heard").read_text().splitlines()} == {
        "socket.bind",
        "pickle.find_class",
    }


def test_no_module_binds_to_other_machines() -> None:
    """By what stands in the code: Whet listens nowhere by itself, and what it starts is told to stay on this machine."""
    source = Path(base.__file__).parents[1]
    for file in source.rglob("*.py"):
        text = file.read_text()
        for word in ("0.0.0.0", "HTTPServer(", "uvicorn.run", "socketserver", ".listen(", "start_server("):
            assert word not in text, f"{file.name}: {word}"
        assert "ray.init(" not in text or "listen on all addresses" in text, (
            file.name
        )  # which Ray does; it is said there
