"""Samples read by an index: equal to those read whole, bounded in memory, local or behind a URL."""

import gc
import io
import json
import os
import tarfile
import tracemalloc

import numpy as np
import PIL.Image
import pytest

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data import indexed, load
from chiasm.data.blob import blobs, local
from chiasm.data.formats import reading
from chiasm.data.formats.messages import read_messages, write_messages
from chiasm.data.formats.reading import Reading
from chiasm.data.formats.webdataset import read as read_tar
from chiasm.data.formats.webdataset import write_webdataset
from chiasm.data.indexed import open_indexed
from chiasm.data.turns import Mixed, Turns


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CHIASM_CACHE", str(tmp_path / "cache"))


def made(count):
    random = np.random.default_rng(0)
    for n in range(count):
        image = PIL.Image.fromarray(random.integers(0, 256, (6, 5, 3), np.uint8))
        yield Sample((user(Image(image), f"where is ü{n}?"), assistant("x" * (n % 7))), f"s{n}")


def said(sample):
    pixels = [np.asarray(image.load()).tobytes() for image in sample.images]
    return sample.turns[0].text, sample.turns[1].text, sample.id, sample.source, sample.meta, pixels


def same(ours, theirs):
    assert list(map(said, ours)) == list(map(said, theirs))


def test_json_lines_by_index_are_those_read_whole(tmp_path):
    file = tmp_path / "set" / "train.jsonl"
    write_messages(made(9), file)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n\n", 3))
    found = open_indexed([local(file)])
    same(found, read_messages(file))
    same([found[i] for i in (8, 0, 3, -1)], [read_messages(file)[i] for i in (8, 0, 3, -1)])


def test_tars_by_index_are_those_read_whole(tmp_path):
    write_webdataset(made(9), tmp_path / "set", "train", 4)
    files = sorted((tmp_path / "set").glob("*.tar"))
    assert len(files) == 3
    found = open_indexed([local(file) for file in files])
    same(found, read_tar(tmp_path / "set", Reading()))
    same([found[7], found[2]], [list(read_tar(tmp_path / "set", Reading()))[i] for i in (7, 2)])


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_with_long_names(tmp_path, kind):
    """Their headers take more than a block; other tools write them."""
    with tarfile.open(tmp_path / "long.tar", "w", format=kind) as tar:
        for n in range(3):
            buffer = io.BytesIO()
            PIL.Image.new("RGB", (4, 4), (n, 0, 0)).save(buffer, "PNG")
            for ending, data in (("png", buffer.getvalue()), ("txt", f"caption {n}".encode())):
                head = tarfile.TarInfo(f"{'long' * 60}/{n}.{ending}")
                head.size = len(data)
                tar.addfile(head, io.BytesIO(data))
    found = open_indexed([local(tmp_path / "long.tar")])
    same(reversed([found[i] for i in (2, 1, 0)]), read_tar(tmp_path / "long.tar", Reading()))


def test_bad_records_are_told_every_time_and_the_rest_is_kept(tmp_path):
    file = tmp_path / "set" / "train.jsonl"
    write_messages(made(3), file)
    with file.open("ab") as out:
        out.write(b'{"messages": 1}\n\xff\n')
    for _ in range(2):  # the second time from the kept index
        bad = {}
        found = open_indexed([local(file)], Reading(bad.__setitem__))
        assert len(found) == 3
        assert list(bad) == ["set/train.jsonl:4", "set/train.jsonl:5"]
        assert "not UTF-8" in str(bad["set/train.jsonl:5"])
    with pytest.raises(DataError, match=r"set/train\.jsonl:4"):
        open_indexed([local(file)])


def test_a_giant_line_costs_itself_alone(tmp_path, monkeypatch):
    file = tmp_path / "set" / "train.jsonl"
    write_messages(made(3), file)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], b'{"a": "' + b"x" * 9000 + b'"}\n', *lines[1:]]))
    monkeypatch.setattr(reading, "LONGEST", 2000)
    monkeypatch.setattr(reading, "_CHUNK", 100)
    bad = {}
    found = open_indexed([local(file)], Reading(bad.__setitem__))
    places = [found[i].where for i in (2, 0, 1)]
    assert places == ["train.jsonl:4", "train.jsonl:1", "train.jsonl:3"]
    assert list(bad) == ["set/train.jsonl:2"]
    assert "a line of more than 2,000 bytes" in str(bad["set/train.jsonl:2"])


def test_the_index_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    file = tmp_path / "set" / "train.jsonl"
    write_messages(made(3), file)
    open_indexed([local(file)])
    with monkeypatch.context() as patched:
        patched.setattr(indexed, "_scan", lambda *_: pytest.fail("read again"))
        assert len(open_indexed([local(file)])) == 3
    write_messages(made(4), file)
    assert len(open_indexed([local(file)])) == 4


def test_a_file_that_shrinks_meanwhile_is_told(tmp_path):
    file = tmp_path / "set" / "train.jsonl"
    write_messages(made(3), file)
    found = open_indexed([local(file)])
    os.truncate(file, 10)
    with pytest.raises(DataError, match="it has changed"):
        found[2]


def test_large_files_are_divided_as_small_ones(tmp_path, monkeypatch):
    first = list(made(30))
    again = [s.replace(id=f"again {s.id}") for s in first]  # about the same images
    write_messages([*first, *again], tmp_path / "set" / "all.jsonl")
    whole = {s: load.load_samples(str(tmp_path / "set"), s) for s in ("train", "test")}
    assert isinstance(whole["train"], list)
    shown = [{s.images[0].source for s in half} for half in whole.values()]
    assert [len(names) for names in shown] == [27, 3]
    assert not shown[0] & shown[1]
    monkeypatch.setattr(load, "LARGE", 10)
    for split, samples in whole.items():
        found = load.load_samples(str(tmp_path / "set"), split)
        assert not isinstance(found, list)
        same(found, samples)


def in_memory(folder):
    """The files of a folder in fsspec's own store."""
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for file in folder.rglob("*"):
        if file.is_file():
            store.pipe(f"/bucket/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return "memory://bucket"


@pytest.mark.parametrize("kind", ["messages", "webdataset"])
def test_behind_a_url_it_is_the_same(tmp_path, kind):
    folder = tmp_path / "bucket"
    for split, count in (("train", 6), ("test", 2)):
        if kind == "messages":
            write_messages(made(count), folder / f"{split}.jsonl")
        else:
            write_webdataset(made(count), folder, split, 4)
    url = in_memory(folder)
    try:
        for split in ("train", "test"):
            same(load.load_samples(url, split), load.load_samples(str(folder), split))
        pattern = f"{url}/*.{'jsonl' if kind == 'messages' else 'tar'}"
        assert len(blobs(pattern)) == (2 if kind == "messages" else 3)
        assert len(load.load_samples(pattern, "train")) == 6
    finally:
        pytest.importorskip("fsspec").filesystem("memory").rm("/bucket", recursive=True)


def test_what_is_not_behind_a_url_is_told():
    pytest.importorskip("fsspec")
    with pytest.raises(DataError, match=r"memory://nowhere: no such file"):
        load.load_samples("memory://nowhere", "train")
    with pytest.raises(DataError, match=r"cannot be read|no such file"):
        load.load_samples("nosuchprotocol://x/y.tar", "train")


@pytest.mark.slow
def test_memory_is_flat_on_100_000_samples(tmp_path):
    """From 10,000 samples on, what a pass over all takes does not grow but by the index."""
    line = json.dumps(
        {
            "id": "#",
            "messages": [
                {"role": "user", "content": "how many? " + "word " * 200},
                {"role": "assistant", "content": "#"},
            ],
        }
    )
    peaks = {}
    for count in (10_000, 100_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for shard in range(10):
            with (folder / f"{shard}.jsonl").open("w") as out:
                for n in range(count // 10):
                    out.write(line.replace("#", f"{shard}-{n}") + "\n")
        files = [local(file) for file in sorted(folder.glob("*.jsonl"))]
        gc.collect()
        tracemalloc.start()
        samples = Mixed.of(open_indexed(files))
        turns, passed = Turns(samples, 1, 0), set()
        for _ in range(20_000):
            turn = turns.next()
            passed.add(samples[turn.index].id if len(passed) < 100 else "")
            turns.use(turn)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(samples) == count
    index = 90_000 * indexed.ROW.itemsize
    order = 90_000 * 8
    assert peaks[100_000] - peaks[10_000] < 2 * (index + order) + 2_000_000
    assert 100_000 * len(line) > 10 * peaks[100_000]
