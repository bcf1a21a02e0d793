"""A rank that dies ends the job soon and by name; one that hangs is named; the job goes on from its checkpoint. Launchers: torchrun
and accelerate."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_shards import launched, surroundings

from trained import trained_folder
from whet.config import RunConfig
from whet.errors import WhetError
from whet.ranks import accelerated

HERE = Path(__file__).parent
WORDS = ["--task", "sort:level=1", "--test-n", "4", "--validation-n", "4", "--k", "0", "--others", "none", "--eval-every", "0",
         "--threads", "1", "--quiet"]  # fmt: skip


def accelerate(*words: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch`."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", *words]
    return subprocess.run(launch, env=surroundings(), capture_output=True, text=True, timeout=900)


# -- one that is lost ------------------------------------------------------------------------------------------------
def test_a_killed_rank_ends_the_job_by_name() -> None:
    began = time.monotonic()
    done = launched(2, str(HERE / "lost_rank.py"), "kill", limit=120)
    assert done.returncode != 0
    assert "rank 1 has stopped, at step 3, learn; go on from the last checkpoint by --resume" in done.stderr
    assert "Signal 9 (SIGKILL)" in done.stderr, "torchrun names it too"
    assert time.monotonic() - began < 100, "bounded, and not by a timeout of hours"


def test_who_waits_says_for_whom_and_where_that_is() -> None:
    done = launched(2, str(HERE / "lost_rank.py"), "hang", limit=120)
    assert done.returncode == 0, done.stderr
    assert "rank 0 has waited 1 s for the others at step 3, learn (sum): rank 1 is at step 3, learn" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("shard", [[], ["--shard"]], ids=["whole", "cut"])
def test_a_run_goes_on_after_a_rank_was_killed(tmp_path: Path, shard: list[str]) -> None:
    """By SIGKILL in the middle of training; the end is that of a run that nobody disturbed, bit for bit."""
    words = ("steps=150", "batch=4", "--save-every", "5", "--model", trained_folder("gpt2"))
    run = ["-m", "whet", "run", "sft", *words, *WORDS, *shard]
    whole = launched(2, *run, "--out", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr[-2000:]
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *run,
        "--out",
        str(tmp_path / "cut"),
    ]
    job = subprocess.Popen([sys.executable, *launch], env=surroundings(), stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
    while not list((tmp_path / "cut" / "checkpoints").glob("step-*")):
        assert job.poll() is None
        time.sleep(0.02)
    pids = map(int, children.read_text().split())
    (victim,) = [pid for pid in pids if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    _, said = job.communicate(timeout=120)
    assert job.returncode != 0 and time.monotonic() - began < 60
    (last,) = [line for line in said.splitlines() if line.startswith("whet: error")]
    assert re.search(r"rank 1 has stopped, at (step \d+, \w+|.*evaluation)", last), last
    again = launched(2, "-m", "whet", "run", "--resume", str(tmp_path / "cut"), "--quiet")
    assert again.returncode == 0, again.stderr[-2000:]
    one, other = (ended(tmp_path / name) for name in ("whole", "cut"))
    assert all(torch.equal(one[n], other[n]) for n in one)


def ended(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


# -- accelerate ------------------------------------------------------------------------------------------------------
BARE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("more", "settings"),
    [
        ({}, {}),
        ({"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_CPU": "True"}, {"dtype": "mixed", "device": "cpu"}),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, {"shard": True}),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, {"shard": True, "activation_checkpointing": True}),
    ],
)  # fmt: skip
def test_what_accelerate_asks_for_becomes_settings(more: dict[str, str], settings: dict[str, Any]) -> None:
    assert accelerated({**BARE, **more}) == settings
    RunConfig.make({"recipe": "sft", **settings})
    assert accelerated(more) == ({} if "ACCELERATE_MIXED_PRECISION" not in more else settings)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "mixed_precision fp16"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_backend: no"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
    ],
)  # fmt: skip
def test_what_has_no_place_here_is_refused(more: dict[str, str], said: str) -> None:
    with pytest.raises(WhetError, match=re.escape(said)):
        accelerated({**BARE, **more})


def test_one_process_of_several_is_refused() -> None:
    """What `accelerate launch --cpu --num_processes 2` starts."""
    with pytest.raises(WhetError, match="one process of several"):
        accelerated({k: v for k, v in BARE.items() if k != "RANK"})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["MULTI_GPU", "FSDP"])
def test_accelerate_launches_a_run_by_its_config_file(tmp_path: Path, kind: str) -> None:
    config: dict[str, Any] = {"compute_environment": "LOCAL_MACHINE", "distributed_type": kind, "mixed_precision": "bf16",
                              "num_processes": 2, "num_machines": 1, "machine_rank": 0, "use_cpu": kind == "MULTI_GPU"}  # fmt: skip
    if kind == "FSDP":
        config["fsdp_config"] = {"fsdp_version": 2, "fsdp_activation_checkpointing": True, "fsdp_offload_params": False}
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(config))
    done = accelerate(
        *(
            "--config_file",
            str(tmp_path / "accelerate.yaml"),
            "--main_process_port",
            "0",
            "-m",
            "whet",
            "run",
            "sft",
            "steps=4",
        ),
        *("batch=6", "--model", trained_folder("gpt2"), *WORDS, "--out", str(tmp_path / "run")),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    config_, record = RunConfig.read(tmp_path / "run" / "run.yaml")
    assert record["ranks"] == 2 and config_.dtype == "mixed"
    assert (config_.shard, config_.activation_checkpointing) == ((True, True) if kind == "FSDP" else (False, False))
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_accelerate_on_cpus_says_that_it_started_one() -> None:
    done = accelerate("--cpu", "--num_processes", "2", "-m", "whet", "run", "sft", *WORDS)
    assert done.returncode != 0 and "whet: error: accelerate has started one process of several" in done.stderr


# -- memory ----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("how", ["whole", "cut", "cut, checkpointed"])
def test_the_predicted_memory_of_a_rank_is_what_it_takes(how: str, tmp_path: Path) -> None:
    """Of 30 M parameters, on two ranks: the peak of the resident set over what it was before, within 20 %."""
    # each tensor has pages of its own, or the C library would keep what was freed
    done = launched(2, str(HERE / "measured.py"), str(tmp_path), how, MALLOC_MMAP_THRESHOLD_="65536")
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        predicted, measured = map(float, (tmp_path / f"{rank}.txt").read_text().split())
        assert measured == pytest.approx(predicted, rel=0.2), how
