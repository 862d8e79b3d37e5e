"""Streaming read, import and inspection of a data set against WebDataset and Hugging Face datasets.

The data: IMAGES photographs-like JPEGs of 500 x 375 with a question and an answer each, as
messages JSONL and, the same bytes, as tars of 250 samples. Units are images.

stream: every sample of the tars once, shuffled, its image decoded to RGB and handed to the
training process, with two workers on both sides: threads that read ahead (data/reader.py) against
processes of torch's DataLoader around webdataset's usual pipeline (shuffled shards, a buffer of
1,000, its PIL decoder). The processes are started before and live on; what they do is to decode,
and to pickle the images. stream_datasets: the same against `datasets` reading the same tars with
streaming=True and a buffer of 1,000. alone and alone_datasets: the same without workers, one thread
against one thread, which is little else than the time that PIL takes to decode. Ours shuffles
across the whole set by index, the peers within a buffer. The index is made before (a read of the
tars, once for all). Before timing, all sides are checked to give the same samples with the same
pixels; what is timed ends with the decoded image.

import: messages JSONL to parquet with 2 threads, every image decoded to see that it can be,
against `datasets` doing the same with 2 processes (map with num_proc=2, then to_parquet). Extra
keys: images a second of `data inspect` with 2 threads; resident memory (MB) that a shuffled read
of 20,000 samples adds where there are 10,000 of them in JSON lines, and where there are 100,000.

Needs the extra `bench`.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader

from benchmarks.harness import alternate, report, result, round_to, rounds_argument
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.blob import local
from chiasm.data.formats.messages import write_messages
from chiasm.data.formats.webdataset import write_webdataset
from chiasm.data.indexed import open_indexed
from chiasm.data.inspect.measure import inspect_data
from chiasm.data.load import load_samples
from chiasm.data.reader import Reader
from chiasm.data.shard_import import ImportPlan
from chiasm.data.shards import run_by_workers
from chiasm.data.turns import Mixed, Turns
from chiasm.train.throughput import memory_in_use

IMAGES, SHARD, BUFFER, WORKERS = 1000, 250, 1000, 2
CPU = torch.device("cpu")

Look = Callable[[PIL.Image.Image], str]
Pass = Callable[[Look], dict[str, str]]
"""One pass over the data: what is seen of every sample's image, by its question."""


def make_set(folder: Path) -> None:
    """messages/ and tars/ with the same samples."""
    random = np.random.default_rng(0)
    samples = []
    for n in range(IMAGES):
        coarse = random.integers(0, 256, (12, 16, 3), np.uint8)
        image = PIL.Image.fromarray(coarse).resize((500, 375), PIL.Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        turns = (user(Image(buffer.getvalue()), f"What is {n}?"), assistant(f"Image {n}."))
        samples.append(Sample(turns, f"s{n}"))
    write_messages(samples, folder / "messages" / "train.jsonl")
    write_messages(samples[:1], folder / "messages" / "test.jsonl")
    write_webdataset(samples, folder / "tars", "train", SHARD)


def every_pixel(image: PIL.Image.Image) -> str:
    """A hash that differs where pixels do; not timed."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def glance(image: PIL.Image.Image) -> str:
    """What costs nothing once an image is decoded, and decodes one that is not."""
    return str(image.getpixel((7, 7)))


def ours(tars: list[str], workers: int) -> Pass:
    def run(look: Look) -> dict[str, str]:
        samples = Mixed.of(open_indexed([local(Path(tar)) for tar in tars]))
        turns, found = Turns(samples, 1, 0), {}
        reader = Reader(samples, turns, workers)
        for _ in range(len(samples)):
            turn = turns.next()
            sample = reader.next(turn)
            turns.use(turn)
            found[sample.turns[0].text] = look(sample.images[0].load())
        return found

    return run


def by_webdataset(tars: list[str], workers: int) -> Pass:
    import webdataset

    data = webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(BUFFER).decode("pil")
    return _each(data, workers)


def by_datasets(tars: list[str], workers: int) -> Pass:
    import datasets

    data = datasets.load_dataset("webdataset", data_files=tars, split="train", streaming=True)
    return _each(data.shuffle(seed=0, buffer_size=BUFFER), workers)


def _each(data: Iterable[dict], workers: int) -> Pass:
    """Every row, by processes that go on living from pass to pass."""
    if workers:
        data = DataLoader(data, batch_size=None, num_workers=workers, persistent_workers=True)  # type: ignore[arg-type]

    def run(look: Look) -> dict[str, str]:
        return {row["json"]["messages"][0]["content"][1]["text"]: look(row["jpeg"]) for row in data}

    return run


def counted(one_pass: Pass) -> Callable[[], float]:
    return lambda: float(len(one_pass(glance)))


def import_ours(folder: Path) -> Callable[[], float]:
    def run() -> float:
        out = folder / "ours"
        shutil.rmtree(out, ignore_errors=True)
        plan = ImportPlan(str(folder / "messages"), to="parquet", size=SHARD)
        done = run_by_workers(plan, out, WORKERS)
        return float(sum(one["kept"] for one in done or ()))

    return run


def import_datasets(folder: Path) -> Callable[[], float]:
    import datasets

    def decoded(row: dict) -> dict:
        row["image"].convert("RGB")
        return {}

    def run() -> float:
        out = folder / "theirs"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        samples = load_samples(str(folder / "messages"), "train")
        rows = [
            {
                "id": sample.id,
                "image": str(sample.images[0].source),
                "question": sample.turns[0].text,
                "answer": sample.turns[1].text,
            }
            for sample in samples
        ]
        data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        data.map(decoded, num_proc=WORKERS, load_from_cache_file=False)
        for number in range(len(data) // SHARD):
            data.shard(len(data) // SHARD, number).to_parquet(out / f"{number}.parquet")
        return float(len(data))

    return run


def memory(folder: Path, count: int) -> float:
    """MB that a shuffled read of 20,000 samples adds, of `count` in ten JSON lines files."""
    folder.mkdir()
    said = [
        {"role": "user", "content": "how many? " + "word " * 200},
        {"role": "assistant", "content": "#"},
    ]
    line = json.dumps({"id": "#", "messages": said})
    for shard in range(10):
        rows = (line.replace("#", f"{shard}-{n}") for n in range(count // 10))
        (folder / f"{shard}.jsonl").write_text("".join(f"{row}\n" for row in rows))
    gc.collect()
    before = memory_in_use(CPU)
    samples = Mixed.of(open_indexed([local(file) for file in sorted(folder.glob("*.jsonl"))]))
    turns = Turns(samples, 1, 0)
    for _ in range(20_000):
        turn = turns.next()
        turns.use(turn)
        assert samples[turn.index].id
    return 1000 * (memory_in_use(CPU) - before)


def main() -> None:
    rounds = rounds_argument(__doc__, 5)
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["CHIASM_CACHE"] = str(folder / "cache")
        make_set(folder)
        tars = sorted(str(file) for file in (folder / "tars").glob("*.tar"))
        parts, seen = {}, {}
        for kind, workers in (("stream", WORKERS), ("alone", 0)):
            mine = ours(tars, workers)
            for name, make in (("", by_webdataset), ("_datasets", by_datasets)):
                peer = make(tars, workers)  # its processes end with it
                for one in (peer, mine):
                    found = one(every_pixel)
                    if found != (seen := seen or found) or len(found) != IMAGES:
                        raise SystemExit(f"data: {kind}{name} gives other samples ({len(found)})")
                parts[kind + name] = alternate(counted(mine), counted(peer), rounds)
        parts["import"] = alternate(import_ours(folder), import_datasets(folder), rounds)
        began = time.perf_counter()
        inspected = inspect_data(str(folder / "messages"), workers=WORKERS)
        rate = sum(len(s.images) for s in inspected.seen) / (time.perf_counter() - began)
        added = {}
        for count in (10_000, 100_000):
            # A process of its own: in this one, memory that is free again would hide what it takes.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                added[count] = fresh.submit(memory, folder / str(count), count).result()
    said = {name: result("images/s", measured) for name, measured in parts.items()}
    least = min(said, key=lambda name: said[name]["ratio"])
    extra = {
        "inspect_images_per_second": round_to(rate),
        "MB_added_by_10_000_samples": round_to(added[10_000]),
        "MB_added_by_100_000_samples": round_to(added[100_000]),
    }
    report("data", {**said[least], "parts": said, **extra})


if __name__ == "__main__":
    main()
