"""Log-probabilities of replies under the reference model: LoRA's base model, or the weights that a
stage began with, computed once and kept on disk.

    CHIASM_CACHE/reference/WEIGHTS-PRECISION/PART    a record a reply: its key, log-probability

Other weights, another precision, another prompt or reply: another place or key, so nothing old is
ever read. Every process appends to parts of its own; a record that a crash cut short is skipped.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BufferedWriter
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chiasm.core.cache import cache_root
from chiasm.core.device import moved_tensor
from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.data.replies import ReplyBatch
from chiasm.nn.eval_mode import evaluating
from chiasm.train.fsdp import own

RECORD = struct.Struct("<16sd")
CHECK = struct.Struct("<I")

LogProbs = Callable[[Any, ReplyBatch], Tensor]
"""(model, batch) -> [N] log-probabilities of the supervised tokens."""


class Reference(Protocol):
    """What log-ratios are relative to."""

    def sums(self, model: Any, batch: ReplyBatch) -> Tensor:
        """[R] log-probabilities of the batch's replies, without a graph."""
        ...


class BaseModel:
    """The model without its adapters, run beside it."""

    def __init__(self, log_probs: LogProbs):
        self.log_probs = log_probs

    def tokens(self, model: Any, batch: ReplyBatch) -> Tensor:
        """[N] log-probabilities of the supervised tokens."""
        with model.adapters_off(), evaluating(model), torch.no_grad():
            return self.log_probs(model, batch)

    def sums(self, model: Any, batch: ReplyBatch) -> Tensor:
        return batch.per_reply(self.tokens(model, batch))


class StoredReference:
    """Log-probabilities of replies under earlier weights, by the replies' keys; `name` is the
    folder of these weights."""

    def __init__(self, name: str, log_probs: LogProbs):
        self.name, self.log_probs = name, log_probs
        self.folder = cache_root() / "reference" / name
        self._file: BufferedWriter | None = None
        self._held: dict[bytes, float] = {}
        for part in sorted(self.folder.glob("*")) if self.folder.is_dir() else ():
            self._held.update(_records(part.read_bytes()))

    def add(self, model: Any, batch: ReplyBatch) -> bool:
        """Compute what is not known yet of a batch, with the weights as they are now; whether there
        was anything."""
        if all(key in self._held for key in batch.keys):
            return False
        with evaluating(model), torch.no_grad():
            sums = batch.per_reply(self.log_probs(model, batch)).tolist()
        for key, value in zip(batch.keys, sums, strict=True):
            if key not in self._held:
                self._held[key] = value
                self._write(key, value)
        return True

    def sums(self, model: Any, batch: ReplyBatch) -> Tensor:
        """Raises CheckpointError for a reply that was never computed."""
        try:
            values = [self._held[key] for key in batch.keys]
        except KeyError:
            raise CheckpointError(
                f"{self.folder}: has not the reference log-probabilities of "
                f"{', '.join(batch.names[:3])}, which need the weights that the stage began with; "
                "restore the folder, or begin the run again"
            ) from None
        return moved_tensor(torch.tensor(values), batch.reply.device)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, key: bytes, value: float) -> None:
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / uuid.uuid4().hex).open("xb")
        record = RECORD.pack(key, value)
        self._file.write(record + CHECK.pack(zlib.crc32(record)))
        self._file.flush()


class StartingWeights:
    """The trained weights as the stage began, put in the model's place for a forward pass: for
    replies that are new every time, of which nothing can be computed beforehand. file: where they
    are kept for a resumed run."""

    def __init__(
        self, model: nn.Module, file: Path, resumed: bool, log_probs: LogProbs, main: bool = True
    ):
        self.log_probs = log_probs
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if resumed:
            if not file.exists():
                raise CheckpointError(f"{file}: no such file, the reference of this run; begin it "
                                      "again")  # fmt: skip
            held = load_file(file)
            self.start = {name: held[name].to(p.device) for name, p in trained.items()}
            return
        self.start = {name: p.detach().clone() for name, p in trained.items()}
        if not main:
            return
        temporary = file.with_name(file.name + ".tmp")
        save_file({name: p.cpu().contiguous() for name, p in self.start.items()}, temporary)
        temporary.replace(file)

    def tokens(self, model: Any, batch: ReplyBatch) -> Tensor:
        """[N] log-probabilities of the supervised tokens."""
        with self._in_place(model), evaluating(model), torch.no_grad():
            return self.log_probs(model, batch)

    def sums(self, model: Any, batch: ReplyBatch) -> Tensor:
        return batch.per_reply(self.tokens(model, batch))

    @contextmanager
    def _in_place(self, model: nn.Module) -> Iterator[None]:
        held = dict(model.named_parameters())
        now = {name: held[name].data for name in self.start}
        try:
            for name, value in self.start.items():
                held[name].data = value
            yield
        finally:
            for name, value in now.items():
                held[name].data = value


def wants_base_model(model: Any, trained: set[str], wish: str) -> bool:
    """Whether the reference is the model without its adapters. ConfigError where that is wished for
    and is another model than the stage began with."""
    off: Callable[[], AbstractContextManager] | None = getattr(model, "adapters_off", None)
    alone = off is not None and trained == {model.adapter_group}
    untouched = alone and model.adapters_untouched()
    if wish == "adapters" and not alone:
        raise ConfigError(
            "reference 'adapters': is the model without its adapters, but this stage trains "
            f"{', '.join(sorted(trained)) or 'nothing'}; train a model with model.lora and only "
            "its adapters, or use the reference 'start'"
        )
    return wish == "adapters" or (wish == "auto" and untouched)


def weights_name(model: nn.Module, precision: str, gather: Callable[[str], list[str]]) -> str:
    """The folder of a model's reference log-probabilities: of its weights with names and dtypes, of
    which every rank hashes the parts that it holds, and of the precision they are computed in."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in model.state_dict().items():
        mine = own(value).detach().cpu().contiguous()
        digest.update(f"{name} {mine.dtype} {tuple(mine.shape)}".encode())
        digest.update(mine.flatten().view(torch.uint8).numpy().data)
    whole = hashlib.blake2b("".join(gather(digest.hexdigest())).encode(), digest_size=16)
    return f"{whole.hexdigest()}-{precision}"


def _records(content: bytes) -> Iterator[tuple[bytes, float]]:
    size = RECORD.size + CHECK.size
    for start in range(0, len(content) - size + 1, size):
        record = content[start : start + RECORD.size]
        if CHECK.unpack_from(content, start + RECORD.size)[0] == zlib.crc32(record):
            yield RECORD.unpack(record)  # type: ignore[misc]
