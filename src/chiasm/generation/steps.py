"""Decode steps: on a CPU as the model computes them, on an accelerator with fixed shapes.

A step of a few rows launches hundreds of kernels that take microseconds each, so a GPU waits for
Python. With fixed shapes, inputs and outputs at fixed addresses and no value read by the host, a
step is captured once as a CUDA graph and launched as a whole:

host      ids, segment, branch, position, entry ──one copy──▶ inputs [5 rows width]
device    replay: embeddings, layers by a StaticView of the cache, head ──▶ logits
host      ◀──one copy── the chosen ids
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiasm.generation.sequence import Feed, batch_of, moved
from chiasm.nn.batched_cache import SlotCache
from chiasm.nn.cache import KVCache
from chiasm.nn.static_cache import (
    WIDTHS,
    StaticCache,
    StaticView,
    padded_entries,
    padded_rows,
    padded_width,
)

IDS, SEGMENT, BRANCH, POSITION, ENTRY = range(5)
"""Rows of a static step's inputs."""

WARM = 2
"""Runs of a step before it is captured: kernels are chosen and workspaces made in them, and shapes
that come once are not worth a graph."""

KEPT = 64
"""Steps kept for one cache; the one made first goes first."""

Run = Callable[[], Tensor]
Capture = Callable[[Run], Run]
"""From a function that computes by fixed memory to one that does the same again, quicker; the
result is in the same memory each time."""


class StaticStep:
    """One forward pass of `rows` rows with `width` tokens each over the first `entries` entries of
    a StaticCache. inputs [5 rows width] int64 on the device say which tokens and where they go."""

    def __init__(
        self,
        model: Any,
        cache: StaticCache,
        shape: tuple[int, int, int],
        device: torch.device,
        capture: Capture | None,
    ):
        rows, width, self.entries = shape
        self.model, self.cache, self.capture = model, cache, capture
        self.inputs = torch.zeros(5, rows, width, dtype=torch.long, device=device)
        self.has_head = width <= WIDTHS[-1]
        # Which tokens stand for images is asked of batches in main memory: here none does.
        blank = torch.zeros(5, rows, width, dtype=torch.long)
        self._host = batch_of(blank)
        self._runs = 0
        self._replay: Run | None = None

    def __call__(self, place: Tensor) -> Tensor:
        """Logits [N V] in fp32 after the tokens that have these numbers [N] laid flat. To be used
        before the next step runs."""
        if self._replay is None and self.capture is not None and self._runs >= WARM:
            self._replay = self._captured(self.capture)
        self._runs += 1
        out = self.compute() if self._replay is None else self._replay()
        out = out.flatten(0, 1)[place]
        return out if self.has_head else self.model.logits(out).float()

    def fill(self, place: Tensor, ids: Tensor) -> None:
        """Other ids [N] at some of its tokens."""
        self.inputs[IDS].view(-1).index_copy_(0, place, ids)

    def compute(self) -> Tensor:
        """The step, kernel by kernel: logits [rows width V] in fp32, or, of steps wider than
        WIDTHS, hidden states, as few logits are wanted of them."""
        batch = batch_of(self.inputs, self._host)
        view = StaticView(self.cache, self.inputs[ENTRY], self.entries)
        hidden = self.model(batch, view)
        return self.model.logits(hidden).float() if self.has_head else hidden

    def _captured(self, capture: Capture) -> Run | None:
        rows, width = self.inputs.shape[1:]
        try:
            return capture(self.compute)
        except Exception as error:  # whatever a model's code does that a graph cannot hold
            warnings.warn(
                f"decode steps of {rows} rows and {width} tokens run without a CUDA graph, which "
                f"is slower: {type(error).__name__}: {str(error).splitlines()[0][:200]}",
                stacklevel=2,
            )
            self.capture = None
            return None


class CudaGraphs:
    """A Capture by CUDA graphs that share one pool of memory: they are never run at once, and what
    one gives is used before the next runs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._stream: Any = None

    def __call__(self, compute: Run) -> Run:
        # The device that is current in this thread need not be the model's, and the stream that
        # torch captures by default is the one of whichever device was captured first.
        with torch.cuda.device(self._device):
            return self._captured(compute)

    def _captured(self, compute: Run) -> Run:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(self._device)
        graph = torch.cuda.CUDAGraph()
        # A cast that autocast keeps would be of memory that does not outlive its context; threads
        # of other models may allocate while this one captures.
        kept = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            torch.clear_autocast_cache()
            with torch.cuda.graph(graph, self._pool, self._stream, "thread_local"):
                out = compute()
        finally:
            torch.set_autocast_cache_enabled(kept)

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


class Steps:
    """Runs a model's decode steps. static: by a StaticCache, as by default on all devices but
    CPUs. capture: None for no graphs; by default CUDA graphs on CUDA."""

    def __init__(
        self,
        model: Any,
        device: torch.device,
        static: bool | None = None,
        capture: Capture | None = None,
    ):
        self.model, self.device = model, device
        self.static = device.type != "cpu" if static is None else static
        self.capture = CudaGraphs(device) if capture is None and device.type == "cuda" else capture
        self._free: list[StaticCache] = []
        self._weights_at: list[int] = []
        self._weights = 0

    def new_slots(self, slots: int) -> SlotCache:
        """A cache for rows that come and go."""
        return StaticCache(slots) if self.static else SlotCache(slots)

    def take_over(self, cache: KVCache, room: int) -> Any:
        """A prompt's cache as one to decode by. room: entries that a row will probably need."""
        if not self.static:
            return cache
        if self.capture is not None:
            self._notice_weights()
        assert cache.index is not None
        rows = len(cache.index.segment)
        room = padded_entries(max(room, cache.index.segment.shape[1]))
        held = [c for c in self._free if c.slots >= rows and c.capacity <= 2 * padded_rows(rows)]
        static = held[0] if held else StaticCache(padded_rows(rows), room)
        self._free = [c for c in self._free if c is not static]
        static.admit(cache)
        return static

    def _notice_weights(self) -> None:
        """Steps captured with weights at other addresses are not run again: training or loading
        may have replaced them."""
        at = [parameter.data_ptr() for parameter in self.model.parameters()]
        if at != self._weights_at:
            self._weights_at, self._weights = at, self._weights + 1

    def give_back(self, cache: Any) -> None:
        """A cache that is needed no more: its memory and its steps serve the next one."""
        if isinstance(cache, StaticCache):
            with torch.inference_mode():
                cache.clear()
            self._free = [cache]

    def logits(
        self, feed: Feed, cache: Any, beside: Sequence[np.ndarray] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits [N V] in fp32 after the last token of each sequence of a feed, which the cache
        holds from then on; and further arrays of integers on the device. All is copied there at
        once."""
        if not isinstance(cache, StaticCache):
            columns, place, *told = moved([feed.columns, feed.flat(), *beside], self.device)
            hidden = self.model(batch_of(columns), cache).flatten(0, 1)
            return self.model.logits(hidden[place]).float(), told
        step, columns = self._prepare(feed, cache)
        place = feed.flat(columns.shape[2])
        columns, place, *told = moved([columns, place, *beside], self.device)
        cache.advance(feed.counts)
        step.inputs.copy_(columns)
        return step(place), told

    def repeated(self, feed: Feed, cache: StaticCache, steps: int) -> Callable[[Tensor], Tensor]:
        """A function of ids [N] -> logits [N V], called once for each of so many steps in which
        every sequence gets one token, the first at a feed's places: nothing is copied for them."""
        step, columns = self._prepare(feed, cache, steps)
        rise = np.zeros_like(columns)
        rows = feed.columns.shape[1]
        rise[POSITION], rise[ENTRY, :rows] = 1, np.array(feed.counts)[:, None]
        columns[POSITION] -= 1  # every step begins by raising them
        columns[ENTRY] -= rise[ENTRY]
        arrays = [columns, rise, feed.flat(columns.shape[2])]
        columns, rise, place = moved(arrays, self.device)
        cache.advance([steps * count for count in feed.counts])
        step.inputs.copy_(columns)

        def run(ids: Tensor) -> Tensor:
            step.inputs.add_(rise)
            step.fill(place, ids)
            return step(place)

        return run

    def width(self, feed: Feed) -> int:
        """Tokens a row that a feed is laid out to in a trial."""
        width = feed.columns.shape[2]
        return padded_width(width) if self.static else width

    def trial(
        self, feed: Feed, cache: Any, beside: Sequence[np.ndarray] = ()
    ) -> tuple[Trial, list[Tensor]]:
        """A step to be run several times with other ids, of which the cache keeps nothing; and
        further arrays of integers on the device."""
        if not isinstance(cache, StaticCache):
            columns, *told = moved([feed.columns, *beside], self.device)
            return Trial(_EagerStep(self.model, cache, columns), None), told
        step, columns = self._prepare(feed, cache)
        columns, *told = moved([columns, *beside], self.device)
        step.inputs.copy_(columns)
        return Trial(step, cache), told

    def _prepare(
        self, feed: Feed, cache: StaticCache, steps: int = 1
    ) -> tuple[StaticStep, np.ndarray]:
        """The step for a feed, and its inputs in main memory."""
        _, rows, width = feed.columns.shape
        assert rows == len(cache.held)
        shape = padded_rows(rows), padded_width(width)
        starts, entries = cache.place(feed.counts, shape[1], steps)
        columns = np.zeros((5, *shape), np.int64)
        columns[SEGMENT], columns[ENTRY] = -1, np.arange(shape[1])
        columns[:ENTRY, :rows, :width] = feed.columns
        columns[ENTRY, :rows] += np.array(starts)[:, None]
        key = (*shape, entries, cache.beside is None, self._weights)
        if key not in cache.steps:
            while len(cache.steps) >= KEPT:
                del cache.steps[next(iter(cache.steps))]
            # What stands beside a cache changes its shape with every image.
            capture = self.capture if cache.beside is None else None
            cache.steps[key] = StaticStep(self.model, cache, key[:3], self.device, capture)
        return cache.steps[key], columns


class _EagerStep:
    """What a StaticStep does, over a KVCache that forgets it."""

    def __init__(self, model: Any, cache: KVCache, columns: Tensor):
        self.model, self.cache, self.length = model, cache, len(cache)
        self.columns = columns.clone()

    def fill(self, place: Tensor, ids: Tensor) -> None:
        self.columns[IDS].view(-1).index_copy_(0, place, ids)

    def __call__(self, place: Tensor) -> Tensor:
        hidden = self.model(batch_of(self.columns), self.cache).flatten(0, 1)
        self.cache.forget(self.length)
        return self.model.logits(hidden[place]).float()


class Trial:
    """A step that is run with one choice of ids after the other."""

    def __init__(self, step: StaticStep | _EagerStep, cache: StaticCache | None):
        self.step, self.cache = step, cache

    def logits(self, filled: Tensor, ids: Tensor, wanted: Tensor) -> Tensor:
        """With ids [M] at the tokens `filled` [M], the logits [N V] in fp32 at the tokens `wanted`
        [N], all numbers of the tokens laid flat."""
        self.step.fill(filled, ids)
        return self.step(wanted)

    def end(self) -> None:
        if self.cache is not None:
            self.cache.drop_unplaced()
