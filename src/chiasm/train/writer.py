"""Checkpoints written beside training; a disk that refuses one costs that checkpoint, no more."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread

from safetensors import SafetensorError
from torch import Tensor

from chiasm.train import checkpoint


class Writer:
    """Writes one checkpoint at a time in a thread of its own, and then deletes old ones.

    keep: how many of the newest stay, besides the best. warn: told on the caller's thread what went
    wrong, at the next call.
    """

    def __init__(self, folder: Path, keep: int, warn: Callable[[str], None]):
        self.folder, self.keep, self.warn = folder, keep, warn
        self._thread: Thread | None = None
        self._failure: str | None = None

    def submit(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict) -> None:
        """Begin to write a checkpoint of tensors nobody else will change; waits for the one
        before."""
        self.wait()
        self._thread = Thread(target=self._write, args=(step, tensors, state), name="checkpoint")
        self._thread.start()

    def wait(self) -> bool:
        """Until the last one is on the disk, or has failed; whether it succeeded."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure:
            self.warn(failure)
        return failure is None

    def _write(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict) -> None:
        place = self.folder / f"step-{step}"
        try:
            checkpoint.save(place, tensors, state)
            checkpoint.prune(self.folder, self.keep)
        except (OSError, SafetensorError, checkpoint.CheckpointError) as error:
            shutil.rmtree(place.with_name(place.name + ".tmp"), ignore_errors=True)
            last = _newest_name(self.folder)
            self._failure = (
                f"{place}: could not be written ({error}); training goes on, the last good "
                f"checkpoint is {last}; free space or mend the permissions"
            )


def _newest_name(folder: Path) -> str:
    try:
        found = checkpoint.newest(folder)
    except OSError:
        return "unreadable"
    return found.name if found else "none"
