"""The launch files start two processes here that train as one; Slurm itself is a stand-in."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAIN = [
    "train",
    "encoder",
    "--stages.0.batch_images",
    "8",
    "--stages.0.gradient_accumulation_steps",
    "2",
]
TRAIN += ["--stages.0.steps", "2", "--stages.0.log-every", "1", "--resume", "auto"]
SRUN = '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n'
SCONTROL = '#!/bin/sh\nfor last; do :; done\necho "$last" | tr , "\\n"\n'

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launched(folder, command, **environment):
    """Losses and gradient norms of a run by this command."""
    given = {"PYTHON": sys.executable, "EACH": "2", "OMP_NUM_THREADS": "1", "PORT": free_port()}
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, *TRAIN, "--out", str(folder / "run")],
        env={**os.environ, **given, "PYTHONPATH": paths, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines if '"grad_norm"' in line]
    assert len(steps) == 2
    return [number for step in steps for number in (step["loss"], step["grad_norm"])]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return launched(folder, [sys.executable, "-m", "chiasm"])


def test_torchrun(alone, tmp_path):
    assert launched(tmp_path, ["bash", "launch/torchrun.sh"]) == pytest.approx(alone, rel=1e-4)


def test_torchrun_of_two_machines(alone, tmp_path):
    """Both of them this one."""
    machines = {"NODES": "2", "HEAD": "127.0.0.1", "EACH": "1", "PORT": free_port()}
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    second = subprocess.Popen(
        ["bash", "launch/torchrun.sh", *TRAIN, "--out", str(tmp_path / "run")],
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": paths, **machines, "NODE": "1"},
        cwd=ROOT,
    )
    found = launched(tmp_path, ["bash", "launch/torchrun.sh"], **machines, NODE="0")
    assert second.wait(60) == 0
    assert found == pytest.approx(alone, rel=1e-4)


def test_slurm(alone, tmp_path):
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (stand_ins / name).write_text(script)
        (stand_ins / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7"}
    path = f"{stand_ins}{os.pathsep}{os.environ['PATH']}"
    found = launched(tmp_path, ["bash", "launch/slurm.sh"], PATH=path, **job)
    assert found == pytest.approx(alone, rel=1e-4)


def test_ray_train(alone, tmp_path):
    pytest.importorskip("ray.train.torch", reason='needs pip install "ray[train]"')
    command = [sys.executable, "launch/ray_train.py", "--workers", "2", "--cpu", "--"]
    assert launched(tmp_path, command) == pytest.approx(alone, rel=1e-4)
