"""Reading ahead: the same batches, states and errors for any number of threads."""

import threading

import numpy as np
import PIL.Image
import pytest
import torch

from chiasm.core.batch import Slot
from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data import reader
from chiasm.data.images import ImageProcessor, ImageStream
from chiasm.data.mixture import Ingredient, Mixture
from chiasm.data.objectives import chat
from chiasm.data.processor import Processor
from chiasm.data.quarantine import Quarantine
from chiasm.data.reader import Reader, spare_threads
from chiasm.data.stream import KnapsackStream, SampleStream
from chiasm.data.template import RoleTemplate
from chiasm.data.text import train_bpe
from chiasm.data.turns import Mixed, Turns


def part(folder, name, count):
    """Samples of one image each on the disk; the third of them is broken."""
    random, samples = np.random.default_rng(0), []
    for n in range(count):
        file = folder / f"{name}{n}.png"
        PIL.Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
        if n == 2:
            file.write_bytes(b"none")
        turns = (user(Image(file), f"which {n}?"), assistant("a" * (1 + n % 5)))
        samples.append(Sample(turns, f"{name}{n}", name))
    return samples


@pytest.fixture
def data(tmp_path):
    sources = (Ingredient("a", 1.0, 0, "a"), Ingredient("b", 3.0, 0, "b"))
    parts = [part(tmp_path, "a", 7), part(tmp_path, "b", 11)]
    return Mixed(parts, Mixture(sources, "tokens", 1.0))


class Codec:
    vocabulary = None
    codes_per_image = 0
    images = ImageProcessor(32, 8)

    def encode(self, images):
        pairs = [self.images.patches(image) for image in images]
        return [Slot(np.full(len(p), 7), p, grid) for p, grid in pairs]

    def outline(self, size):
        return Slot(np.full(16, 7), np.zeros((0, 192), np.float32), (4, 4))


def stream(kind, data, quarantine, threads):
    if kind is ImageStream:
        return ImageStream(data, ImageProcessor(32, 8), 4, 0, 1, True, quarantine, threads=threads)
    words = RoleTemplate(train_bpe(["which answer"] * 4, 320))
    more = {"window": 8} if kind is KnapsackStream else {}
    return kind(
        data, [chat], Processor(words, Codec()), 120, 0,
        quarantine=quarantine, threads=threads, **more,
    )  # fmt: skip


def seen(batch):
    return {k: v.tolist() for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}


@pytest.mark.parametrize("kind", [SampleStream, KnapsackStream, ImageStream])
def test_threads_change_nothing(kind, data):
    found = {}
    for threads in (0, 1, 3):
        quarantine = Quarantine()
        one = stream(kind, data, quarantine, threads)
        one.split(1, 3)
        batches = iter(one)
        first = [seen(next(batches)) for _ in range(5)]
        state = one.state_dict()
        rest = [seen(next(batches)) for _ in range(5)]
        one.load_state_dict(state)
        assert [seen(next(batches)) for _ in range(5)] == rest
        other = stream(kind, data, Quarantine(), threads)
        other.split(1, 3)
        other.load_state_dict(state)
        assert [seen(next(iter(other))) for _ in range(5)] == rest
        found[threads] = first, state, rest, quarantine.reasons
    assert found[1] == found[0]
    assert found[3] == found[0]
    assert {"a2", "b2"} >= {*found[0][3]} != set()


def test_the_images_to_come_are_decoded_by_threads(data, monkeypatch):
    """Those asked for are there already, and no more are held than asked to."""
    where = []
    load = Image.load

    def watched(image):
        where.append((threading.current_thread().name.partition("_")[0], image.source.stem))
        return load(image)

    monkeypatch.setattr(Image, "load", watched)
    turns = Turns(data, 1, 0)
    ahead = Reader(data, turns, 2)
    for _ in range(40):
        turn = turns.next()
        sample = ahead.next(turn)
        assert len(ahead._begun) <= 2 * ahead.ahead
        turns.use(turn, 5)
        if not sample.id.endswith("2"):
            assert sample.images[0].load().size == (32, 32)
            assert sample.images[0].digest() == data[turn.index].images[0].digest()
        else:
            with pytest.raises(DataError, match="not a readable image"):
                sample.images[0].load()
    assert {thread for thread, name in where if name[1:] != "2"} == {"reader"}


def test_only_a_gpu_leaves_cores_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert spare_threads() == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for cores, ranks, threads in ((64, "8", 7), (64, "1", reader.MOST), (2, "4", 1), (2, "1", 1)):
        monkeypatch.setattr(reader.os, "cpu_count", lambda cores=cores: cores)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert spare_threads() == threads
