"""Several processes as one: who they are, what they tell each other, how gradients add up.

Small models are held whole by every rank, and gradients are added once a step (plain data
parallelism). Doing it after the backward pass and not in its hooks costs the overlap, and wins that
a rank whose batch has no image needs nothing special. Large models: train/fsdp.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from chiasm.core.device import use

BUCKET = 25 * 2**20
"""Bytes of gradients sent at a time, as torch's DistributedDataParallel."""


@dataclass(frozen=True)
class World:
    """This process among `size`, all there are or those of a group. Everything here is immediate
    where it is the only one."""

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in order of rank; JSON, as nothing here is ever unpickled."""
        if self.size == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(own)]), self.group)
        longest = int(max(lengths))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(own)] = own
        rows = [torch.zeros_like(padded) for _ in range(self.size)]
        dist.all_gather(rows, padded, self.group)
        pairs = zip(rows, lengths, strict=True)
        return [json.loads(bytes(row[: int(n)].tolist())) for row, n in pairs]

    def any(self, flag: bool) -> bool:
        """Whether it holds on some rank."""
        if self.size == 1:
            return flag
        seen = torch.tensor(int(flag))
        dist.all_reduce(seen, dist.ReduceOp.MAX, self.group)
        return bool(seen)

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            dist.barrier(self.group)

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in place."""
        if self.size == 1:
            return
        sent = []
        for bucket in _buckets(tensors):
            flat = torch.cat([t.reshape(-1) for t in bucket])
            sent.append((bucket, flat, dist.all_reduce(flat, group=self.group, async_op=True)))
        for bucket, flat, work in sent:
            work.wait()  # type: ignore[union-attr]
            for t, summed in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                t.copy_(summed.view(t.shape))

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Give every rank of all there are the first one's values."""
        if self.size == 1:
            return
        for tensor in tensors:  # as bytes: gloo does not know every type
            flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            dist.broadcast(flat, 0)
            if flat.data_ptr() != tensor.data_ptr():  # else the values came in place
                tensor.detach().copy_(flat.view(tensor.dtype).view(tensor.shape))


def current() -> World:
    """The world this process has joined."""
    if not dist.is_available() or not dist.is_initialized():
        return World()
    return World(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world that torchrun started this process in, left again at the end; this process alone
    where it was started by hand. Tensors on the device are exchanged by the library that is made
    for it (NCCL for CUDA), those in main memory by gloo."""
    use(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield current()
        return
    own = {"cuda": "nccl", "xpu": "xccl"}.get(device.type)
    dist.init_process_group(f"cpu:gloo,{device.type}:{own}" if own else "gloo")
    try:
        yield current()
    finally:
        dist.destroy_process_group()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype, about BUCKET bytes together."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or size >= BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
    if bucket:
        yield bucket
