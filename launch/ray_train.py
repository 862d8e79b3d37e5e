"""The same command on a Ray cluster: Ray places the processes, torch.distributed joins them.

    python launch/ray_train.py --workers 16 -- train recipes.py --out /shared/runs/a --resume auto

Needs `pip install "ray[train]"` on every machine, and a folder for the run that all of them see.
A worker that is lost ends the others; Ray starts all again, and --resume auto goes on.
"""

from __future__ import annotations

import argparse
import os
import sys


def work(config: dict) -> None:
    """One process of the run. Ray has set RANK, WORLD_SIZE and so on, joined the processes and
    given each its device, which need not have the number of its LOCAL_RANK."""
    from ray.train.torch import get_device

    from chiasm.cli import main

    os.environ["CHIASM_DEVICE"] = str(get_device()) if config["gpu"] else "cpu"
    main(config["arguments"])


def run(workers: int, gpu: bool, arguments: list[str], failures: int) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        work,
        train_loop_config={"arguments": arguments, "gpu": gpu},
        # Numbers are exchanged on the CPU, gradients where they are.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=failures)),
    )
    trainer.fit()


def main() -> None:
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, required=True, help="processes, one a GPU")
    parser.add_argument("--cpu", action="store_true", help="workers without a GPU")
    parser.add_argument("--failures", type=int, default=3, help="restarts")
    own = parser.parse_args(given[:cut])
    if not given[cut + 1 :]:
        parser.error("what to run is missing: -- train RECIPE --out FOLDER --resume auto")
    run(own.workers, not own.cpu, given[cut + 1 :], own.failures)


if __name__ == "__main__":
    main()
