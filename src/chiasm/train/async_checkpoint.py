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
    wrong, at the next call. saved: told so of a complete checkpoint, its step and folder.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        warn: Callable[[str], None],
        saved: Callable[[int, Path], None] = lambda step, folder: None,
    ):
        self.folder, self.keep, self.warn, self.saved = folder, keep, warn, saved
        self._step = 0
        self._thread: Thread | None = None
        self._failure: str | None = None

    def submit(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict) -> None:
        """Begin to write a checkpoint of tensors nobody else will change; waits for the one
        before."""
        self.wait()
        self._step = step
        self._thread = Thread(target=self._write, args=(step, tensors, state), name="checkpoint")
        self._thread.start()

    def wait(self) -> bool:
        """Until the last one is on the disk, or has failed; whether it succeeded."""
        written, self._thread = self._thread, None
        if written is not None:
            written.join()
        failure, self._failure = self._failure, None
        if failure:
            self.warn(failure)
        elif written is not None:
            self.saved(self._step, self._place(self._step))
        return failure is None

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def _write(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict) -> None:
        place = self._place(step)
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
