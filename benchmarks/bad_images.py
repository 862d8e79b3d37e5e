"""What bad images cost the training stream, and what it remembers.

The data: IMAGES JPEGs of 500 x 375 with a question and an answer each, in JSON lines, twice:
once clean ("peer"), once with one image in a hundred replaced by a truncated file, by random
bytes or by a PNG that declares 50,000 x 50,000 pixels ("ours"). Units are good images: read,
decoded, fitted to 224 pixels, cut into patches and packed into batches of 2,048 tokens with their
texts, by one process and one thread. A ratio of 0.97 is a slowdown of 3 %. Every round begins with
a quarantine of its own, which has to hold exactly the bad samples at its end, on the disk too.

Extra keys: resident memory (MB) that 10,000 samples add after the first 1,000, bad ones among them.
"""

from __future__ import annotations

import io
import json
import struct
import tempfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from benchmarks.harness import Run, alternate, report, result, round_to, rounds_argument
from chiasm.data.load import load_samples
from chiasm.data.objectives import chat
from chiasm.data.processor import Processor
from chiasm.data.quarantine import Quarantine
from chiasm.data.stream import SampleStream
from chiasm.data.template import RoleTemplate
from chiasm.data.text import train_bpe
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.config import PixelShuffleConfig
from chiasm.mllm.projectors import build_projector
from chiasm.train.throughput import memory_in_use
from chiasm.vision.config import ViTConfig

IMAGES, EVERY, TOKENS = 1000, 100, 2048
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Folder:
    """A data set on the disk, and the ids of its bad samples."""

    path: Path
    bad: frozenset[str]


def jpeg(number: int) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
    image = PIL.Image.fromarray(coarse).resize((500, 375), PIL.Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG that would decode to 2.5 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        end = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + end

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(2_000_000)))
    return b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b"")


def make(path: Path, salted: bool) -> Folder:
    """IMAGES samples in train.jsonl, one in EVERY bad if `salted`."""
    path.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, 30_000, np.uint8).tobytes()
    lines, bad = [], set()
    for n in range(IMAGES):
        data = jpeg(n)
        if salted and n % EVERY == EVERY // 2:
            data = (data[: len(data) // 2], noise, bomb())[len(bad) % 3]
            bad.add(f"s{n}")
        (path / f"{n}.jpg").write_bytes(data)
        asked = [{"type": "image"}, {"type": "text", "text": f"What is {n}?"}]
        turns = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": f"Image {n}."},
        ]
        lines.append(json.dumps({"id": f"s{n}", "messages": turns, "images": [f"{n}.jpg"]}))
    (path / "train.jsonl").write_text("\n".join(lines) + "\n")
    return Folder(path, frozenset(bad))


def stream_of(folder: Folder, quarantine: Quarantine) -> SampleStream:
    """The stream that trains a model of SigLIP-B/16's grid with 49 tokens an image."""
    vision = ViTConfig(image_size=224, patch_size=16)
    codec = MLLMCodec(vision, build_projector(PixelShuffleConfig(2), 8, 8, 1.0), image_token=7)
    template = RoleTemplate(train_bpe(["What is image?"] * 4, 320))
    samples = load_samples(str(folder.path), "train")
    return SampleStream(samples, [chat], Processor(template, codec), TOKENS, 0, quarantine)


def one_pass(folder: Folder, record: Path) -> Run:
    """Reads every sample once and says how many were good."""
    number = count()

    def run() -> float:
        file = record / f"{folder.path.name}-{next(number)}.jsonl"
        quarantine = Quarantine(file)
        stream, seen = stream_of(folder, quarantine), 0
        batches = iter(stream)
        while stream.turns.counts[0].cursor < IMAGES:
            seen += next(batches).images
        lines = file.read_text().splitlines() if file.exists() else []
        if not {json.loads(line)["id"] for line in lines} == set(quarantine.reasons) == folder.bad:
            raise SystemExit(f"bad_images: {len(lines)} listed, {len(folder.bad)} are bad")
        return float(seen)

    return run


def memory(folder: Folder) -> float:
    """MB that 10,000 samples add after the first 1,000."""
    stream = stream_of(folder, Quarantine())
    batches, seen, before = iter(stream), 0, 0.0
    while seen < 11_000:
        seen += next(batches).images
        if not before and seen >= 1000:
            before = memory_in_use(CPU)
    return 1000 * (memory_in_use(CPU) - before)


def main() -> None:
    rounds = rounds_argument(__doc__, 7)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        record = Path(place)
        bad, clean = make(record / "bad", True), make(record / "clean", False)
        measured = alternate(one_pass(bad, record), one_pass(clean, record), rounds)
        # A process of its own: in this one, memory that is free again would hide what it takes.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            added = fresh.submit(memory, bad).result()
    report(
        "bad_images",
        result(
            "images/s",
            measured,
            bad_of_samples=len(bad.bad) / IMAGES,
            MB_added_by_10_000_samples=round_to(added),
        ),
    )


if __name__ == "__main__":
    main()
