"""Trials one after the other or in several processes, each done once however often it is asked."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from chiasm.core.errors import CheckpointError
from chiasm.core.progress import Show
from chiasm.recipes.stability.trial import Outcome, Trial, outcome_of
from chiasm.train.checkpoint import read_json, write_whole


def run_all(trials: Sequence[Trial], folder: Path, jobs: int, show: Show) -> dict[Trial, Outcome]:
    """Every trial's outcome; what an interrupted sweep has done is not done again. jobs: processes
    of one thread each; 1 trains here, with the threads there are."""
    place = folder / "trials"
    place.mkdir(parents=True, exist_ok=True)
    found: dict[Trial, Outcome] = {}
    with show("trials", len(trials), 0) as view:
        if jobs == 1:
            for trial in trials:
                found[trial] = outcome_of(trial, place)
                view.advance()
            return found
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
            waiting = {pool.submit(outcome_of, trial, place): trial for trial in trials}
            for done in as_completed(waiting):
                found[waiting[done]] = done.result()
                view.advance()
    return found


def claim(folder: Path, settings: dict) -> None:
    """Say what a folder's sweep is of. CheckpointError where it holds another one."""
    file = folder / "settings.json"
    if file.exists():
        if read_json(file) != settings:
            raise CheckpointError(
                f"{file}: this folder holds a sweep with other settings; choose another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(settings, indent=2))
