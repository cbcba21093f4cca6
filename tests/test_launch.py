"""The launch recipes, run with stand-ins for the cluster's own commands."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parent.parent / "launch"


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Puts a script of a given name in front of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def add(name: str, body: str, where: pathlib.Path = folder) -> None:
        where.mkdir(parents=True, exist_ok=True)
        (where / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (where / name).chmod(0o755)

    return add


def run(*command, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(part) for part in command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_local_processes_know_their_places():
    place = "echo $JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID"
    done = run(LAUNCH / "local.sh", 3, "bash", "-c", place)
    addresses, counts, indices = zip(*map(str.split, done.stdout.splitlines()), strict=True)
    assert done.returncode == 0
    assert len(set(addresses)) == 1 and set(counts) == {"3"} and sorted(indices) == ["0", "1", "2"]


def test_one_failure_ends_all_local_processes():
    """Or the others would wait for it for ever."""
    one_fails = "[ $JAX_PROCESS_ID = 1 ] && exit 7; exec sleep 60"
    begun = time.monotonic()
    assert run(LAUNCH / "local.sh", 3, "bash", "-c", one_fails).returncode == 7
    assert time.monotonic() - begun < 30


def test_sigterm_reaches_all_local_processes_and_their_status_is_told(tmp_path):
    """75 is what a run that has saved ends with."""
    program = (
        "trap 'touch told-$JAX_PROCESS_ID; exit 75' TERM; touch ready-$JAX_PROCESS_ID;"
        "while true; do sleep 0.05; done"
    )
    process = subprocess.Popen([LAUNCH / "local.sh", "2", "bash", "-c", program], cwd=tmp_path)
    while len(list(tmp_path.glob("ready-*"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    assert {path.name for path in tmp_path.glob("told-*")} == {"told-0", "told-1"}


@pytest.mark.parametrize("script", ["local.sh", "tpu_vm.sh"])
def test_without_arguments_a_recipe_explains_itself(script):
    done = run(LAUNCH / script)
    assert done.returncode == 2 and f"launch/{script}" in done.stderr
    assert not any(line.startswith("#") for line in done.stderr.splitlines())


@pytest.mark.parametrize(
    ("status", "requeued", "ends_with"),
    [(0, False, 0), (75, True, 0), (74, True, 0), (2, False, 2), (1, False, 1)],
)
def test_slurm_requeues_what_another_turn_can_mend(commands, tmp_path, status, requeued, ends_with):
    commands("srun", f'echo "$@"; exit {status}')
    commands("scontrol", f'echo "$@" > {tmp_path}/requeued')
    done = run(
        LAUNCH / "slurm.sh",
        "--config",
        "a file.py",
        SLURM_SUBMIT_DIR=str(tmp_path),
        SLURM_JOB_ID="17",
    )
    assert done.returncode == ends_with
    assert "-m big_mm.train --config a file.py" in done.stdout
    found = (tmp_path / "requeued").read_text() if (tmp_path / "requeued").exists() else ""
    assert found == ("requeue 17\n" if requeued else "")


def test_workers_of_a_tpu_slice_start_again_until_they_need_not(commands, tmp_path):
    """gcloud's part is played by a shell on this machine, the run's by a script."""
    home = tmp_path / "home"
    python = (
        'echo "$@" >> calls; n=$(wc -l < calls);'
        "case $n in 1) exit 75;; 2) kill -9 $$;; *) exit 2;; esac"
    )
    commands("python", python, home / "big_mm" / ".venv" / "bin")
    commands("sleep", "exit 0")
    commands("gcloud", f'for last; do :; done; cd {home}; bash -c "${{last#--command=}}"')
    argument = "--config.contract.tokenizer.path=it's here.model"
    done = run(LAUNCH / "tpu_vm.sh", "train", "--config", "c.py", argument, TPU="slice", ZONE="z")
    assert done.returncode == 0, done.stderr
    calls = home / "big_mm" / "calls"
    until = time.monotonic() + 30
    while time.monotonic() < until and (
        not calls.exists() or len(calls.read_text().splitlines()) < 3
    ):
        time.sleep(0.05)
    time.sleep(0.3)
    assert calls.read_text().splitlines() == [f"-m big_mm.train --config c.py {argument}"] * 3


def test_a_dry_run_touches_nothing(commands):
    commands("gcloud", "exit 9")
    done = run(
        LAUNCH / "tpu_vm.sh", "create", "v5litepod-256", "image", TPU="a", ZONE="z", DRY_RUN="1"
    )
    assert done.returncode == 0
    assert (
        "tpu-vm create a --zone=z --accelerator-type=v5litepod-256 --version=image" in done.stdout
    )
