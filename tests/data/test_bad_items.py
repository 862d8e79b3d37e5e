"""A folder salted with what real folders hold: all of it reported, the good kept as it is meant,
and the same left out by inspection, import and both training streams."""

import io
import json
import os
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from chiasm.core.batch import Slot
from chiasm.core.errors import DataError
from chiasm.core.sample import Image
from chiasm.data.convert import convert
from chiasm.data.filters.run import filter_data
from chiasm.data.formats import reading
from chiasm.data.images import ImageProcessor, ImageStream
from chiasm.data.inspect.measure import inspect_data
from chiasm.data.inspect.page import write_page
from chiasm.data.load import load_samples
from chiasm.data.objectives import chat
from chiasm.data.processor import Processor
from chiasm.data.quarantine import Quarantine
from chiasm.data.shard_import import ImportPlan
from chiasm.data.shards import run_shards
from chiasm.data.stream import SampleStream
from chiasm.data.template import RoleTemplate
from chiasm.data.text import train_bpe

GOOD = 70


def encoded(image: PIL.Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def scene(seed: int, size: tuple[int, int] = (48, 32)) -> PIL.Image.Image:
    """Something to see: a few blocks of colour, so that JPEG stays close."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return PIL.Image.fromarray(blocks).resize(size, PIL.Image.Resampling.BICUBIC)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, data: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """50,000 x 50,000 pixels in a few kilobytes."""
    squeeze = zlib.compressobj(9)
    rows = [squeeze.compress(b"\0" * 50_001) for _ in range(60)]
    return png_of(50_000, 50_000, b"".join(rows) + squeeze.flush())


JPEG, PNG = encoded(scene(0), "JPEG"), encoded(scene(1), "PNG")
SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'

BAD_IMAGES: dict[str, tuple[bytes, str]] = {
    "truncated-jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "truncated-png": (PNG[: len(PNG) // 2], "truncated"),
    "broken-png": (PNG[:60] + bytes(40) + PNG[100:], "broken"),
    "empty": (b"", "an empty file"),
    "html": (b"\n<!DOCTYPE html><html><body>404 Not Found", "holds an HTML page"),
    "svg": (SVG, "holds an SVG drawing"),
    "pdf": (b"%PDF-1.7\n1 0 obj", "holds a PDF"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "holds a PostScript"),
    "noise": (bytes(np.random.default_rng(0).integers(0, 256, 999, np.uint8)), "cannot identify"),
    "bomb": (bomb(), "decompression bomb"),
    "text": (b"not an image at all", "cannot identify"),
}


def talk(*contents: object, **rest: object) -> dict:
    roles = ("user", "assistant")
    said = [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]
    return {"messages": said, **rest}


ASKED = [{"type": "image"}, {"type": "text", "text": "Which?"}]

BAD_LINES: dict[str, tuple[bytes | dict, str]] = {
    "too few placeholders": (
        talk(ASKED, "x", images=["g0.png", "g1.png"]),
        "1 image part but 2 images",
    ),
    "too many placeholders": (talk([*ASKED, *ASKED], "x", images=["g0.png"]), "2 image parts"),
    "role order": ({"messages": [{"role": "assistant", "content": "x"}]}, "no user turn"),
    "same role twice": ({"messages": [{"role": "user", "content": "x"}] * 2}, "both the user's"),
    "unknown role": ({"messages": [{"role": "bot", "content": "x"}]}, "unknown role"),
    "null text": (talk("?", None), "content is null"),
    "null part": (talk([{"type": "text", "text": None}], "x"), "text is null"),
    "text is a number": (talk([{"type": "text", "text": 7}], "x"), "text is 7"),
    "unknown part": (talk([{"type": "sound"}], "x"), "unknown type"),
    "no messages": ({"images": []}, "neither turns"),
    "empty messages": ({"messages": []}, '"messages" is []'),
    "path traversal": (talk(ASKED, "x", images=["../../etc/passwd"]), "a path out of the file's"),
    "absolute path": (talk(ASKED, "x", images=["/etc/passwd"]), "an absolute path"),
    "windows path": (talk(ASKED, "x", images=["C:\\a.png"]), "an absolute path"),
    "NUL in a path": (talk(ASKED, "x", images=["a\0.png"]), "make it a path"),
    "path is null": (talk(ASKED, "x", images=[None]), "images[0] is null"),
    "half a surrogate": (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "surrogate"),
    "invalid UTF-8": (b'{"messages": "\xe9"}', "not UTF-8"),
    "UTF-16": ('{"messages": 1}'.encode("utf-16"), "not UTF-8"),
    "broken JSON": (b'{"messages": [', "not JSON"),
    "no object": (b"[1, 2]", "expected a JSON object"),
    "deep nesting": (b"[" * 100_000, "not usable JSON"),
    "giant line": (b'{"messages": "' + b"x" * 300_000 + b'"}', "a line of more than"),
}


@cache
def kept_images() -> dict[str, tuple[bytes, str]]:
    """Odd but good ones, with the remark that inspection makes."""
    exif, broken = PIL.Image.Exif(), b"Exif\0\0II*\0\xff\xff\xff\xff"
    exif[0x0112] = 6  # the camera was turned: show it turned by 90 degrees clockwise
    grey = np.linspace(0, 65535, 64 * 32).astype(np.uint16).reshape(32, 64)
    ink = PIL.Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    ink.paste((0, 0, 0, 255), (8, 8, 24, 24))
    return {
        "cmyk": (encoded(scene(2).convert("CMYK"), "JPEG", quality=95), "CMYK, converted"),
        "sixteen": (encoded(PIL.Image.fromarray(grey), "PNG"), "16 bits, scaled to 8"),
        "turned": (encoded(scene(3), "JPEG", exif=exif, subsampling=0), "turned as its EXIF says"),
        "broken-exif": (encoded(scene(4), "JPEG", exif=broken, subsampling=0), ""),
        "animated": (encoded(scene(5).convert("P"), "GIF", save_all=True,
                             append_images=[scene(6).convert("P")]), "several frames"),
        "dot": (encoded(PIL.Image.new("RGB", (1, 1), "red"), "PNG"), "smaller than 16 pixels"),
        "strip": (encoded(scene(7, (60_000, 10)), "PNG"), "times as long as wide"),
        "transparent": (encoded(ink, "PNG"), "transparent, put on white"),
        "plain": (encoded(PIL.Image.new("RGB", (40, 40), "teal"), "PNG"), "one colour only"),
        "palette": (encoded(scene(8).quantize(16), "PNG"), ""),
        "webp": (encoded(scene(9), "WEBP", lossless=True), ""),
        "tiff": (encoded(scene(10), "TIFF"), ""),
        "named-wrongly": (encoded(scene(11), "BMP"), ""),
    }  # fmt: skip


@pytest.fixture(scope="module")
def salted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("salted")
    lines: list[bytes] = []

    def add(name: str, **rest: object) -> None:
        row = talk(ASKED, f"answer {name}", id=name, images=[f"{name}.jpg"], **rest)
        lines.append(json.dumps(row).encode())

    for i in range(GOOD):
        (folder / f"g{i}.jpg").write_bytes(encoded(scene(100 + i), "PNG"))
        add(f"g{i}")
        if i < len(BAD_LINES):
            line = list(BAD_LINES.values())[i][0]
            lines.append(line if isinstance(line, bytes) else json.dumps(line).encode())
    for name, (data, _) in {**BAD_IMAGES, **kept_images()}.items():
        (folder / f"{name}.jpg").write_bytes(data)
        add(name)
    (folder / "folder.jpg").mkdir()
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    for name in OTHER_BAD:
        add(name)
    add("g0")  # an id twice, of the same image
    (folder / "g1-again.jpg").write_bytes(encoded(scene(101), "JPEG", quality=95, subsampling=0))
    add("g1-again")
    (folder / "train.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (folder / "test.jsonl").write_text(json.dumps(talk("What is 1 + 1?", "2", id="t")) + "\n")
    return folder


OTHER_BAD = {
    "missing": "no such image",
    "folder": "is not a file",
    "loop": "symbolic links",
    "dangling": "no such image",
    "pipe": "is not a file",
}
BAD_KEYS = {*BAD_IMAGES, *OTHER_BAD}


@pytest.fixture(autouse=True)
def short_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "LONGEST", 200_000)


def bad_places(folder: Path) -> set[str]:
    """The lines that are no record: after each of the first good ones."""
    return {f"{folder.name}/train.jsonl:{2 * i + 2}" for i in range(len(BAD_LINES))}


def test_there_are_enough_kinds():
    assert len(BAD_LINES) + len(BAD_KEYS) + len(kept_images()) >= 30 + 15


def test_inspection_reports_all_of_it(salted: Path, tmp_path: Path):
    found = inspect_data(str(salted))
    reasons = {u.key: u.reason for u in found.unusable}
    assert {*reasons} == BAD_KEYS | bad_places(salted)
    assert len(found.unusable) == len(reasons)
    for place, (name, (_, words)) in zip(
        sorted(bad_places(salted), key=lambda p: int(p.rpartition(":")[2])),
        BAD_LINES.items(), strict=True,
    ):  # fmt: skip
        assert words in reasons[place], name
    for name, words in [*((n, w) for n, (_, w) in BAD_IMAGES.items()), *OTHER_BAD.items()]:
        assert words in reasons[name], name
        assert f"{name}.jpg" in reasons[name]
        assert "train.jsonl:" in reasons[name]
        assert "remove the sample" in reasons[name]
    kinds = {u.key: u.kind for u in found.unusable}
    assert sorted(kinds.values()).count("placeholders") == 2
    remarks = {s.name: " ".join(s.all_remarks) for s in found.seen}
    for name, (_, words) in kept_images().items():
        assert words in remarks[name], name
    assert "id is not unique" in remarks["g0"]
    assert remarks["g2"] == ""
    assert [[p.name for p in group] for group in found.alike] == [["g1.jpg", "g1-again.jpg"]]
    assert found.leaked == 0  # all of them are in train
    write_page(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    whole = json.loads((tmp_path / "page.json").read_text())
    assert {row["id"] for row in whole["unusable"]} == {*reasons}
    assert [row["id"] for row in whole["odd"]].count("g0") == 2
    assert [name for name in BAD_KEYS if name not in page] == []
    assert page.count("http") == page.count("http-equiv")  # nothing asks the network


def test_what_is_kept_looks_as_it_was_meant(salted: Path):
    def pixels(name: str) -> np.ndarray:
        return np.asarray(Image(salted / f"{name}.jpg").load(), np.float32)

    def close(name: str, wanted: PIL.Image.Image | np.ndarray, by: float) -> None:
        wanted = np.asarray(wanted, np.float32)
        assert pixels(name).shape == wanted.shape
        assert float(np.abs(pixels(name) - wanted).mean()) < by, name

    close("cmyk", scene(2), 8)
    grey = np.linspace(0, 255, 64 * 32).reshape(32, 64, 1).repeat(3, 2)
    close("sixteen", grey, 0.6)
    close("turned", scene(3).transpose(PIL.Image.Transpose.ROTATE_270), 8)
    close("broken-exif", scene(4), 8)
    close("animated", scene(5).convert("P").convert("RGB"), 0.01)
    close("webp", scene(9), 0.01)
    close("named-wrongly", scene(11), 0.01)
    assert pixels("transparent")[0, 0].tolist() == [255, 255, 255]
    assert pixels("transparent")[16, 16].tolist() == [0, 0, 0]
    assert pixels("strip").shape == (10, 60_000, 3)


def test_import_keeps_the_good_and_lists_the_bad(salted: Path, tmp_path: Path):
    done = convert(str(salted), tmp_path / "out")
    kept = GOOD + len(kept_images()) + 2
    assert done.counts == {"train": kept, "test": 1}
    assert {*done.quarantine.reasons} == BAD_KEYS | bad_places(salted)
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == BAD_KEYS | bad_places(salted)
    again = inspect_data(str(tmp_path / "out"))
    assert (len(again.seen), again.unusable) == (kept + 1, [])
    with pytest.raises(DataError, match="is not empty"):
        convert(str(salted), tmp_path / "out")


@pytest.mark.parametrize("how", ["import", "filter", "shards", "stream"])
def test_bad_items_that_share_an_id_are_told_apart(tmp_path: Path, how: str):
    files = [f"{name}{n}.png" for name in "ab" for n in (0, 1, 2)]
    rows = [talk(ASKED, "x", id=file[0], images=[file]) for file in files]
    (tmp_path / "own").mkdir()
    for file in files[2:]:  # two of the three called "a" are missing
        (tmp_path / "own" / file).write_bytes(PNG)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "own" / "train.jsonl").write_text(text)
    (tmp_path / "own" / "test.jsonl").write_text(json.dumps(talk("1 + 1?", "2")) + "\n")
    data, out = str(tmp_path / "own"), tmp_path / "out"
    quarantine = Quarantine()
    if how == "import":
        quarantine = convert(data, out).quarantine
    elif how == "filter":
        quarantine = filter_data(data, out, [], workers=2).quarantine
    elif how == "shards":
        done = run_shards(ImportPlan(data, size=100).work(), out) or []
        quarantine = Quarantine(reasons=done[0]["unusable"])
    else:
        stream = ImageStream(
            load_samples(data, "train"), ImageProcessor(32, 8), 2, 0, quarantine=quarantine
        )
        for _ in zip(range(8), stream, strict=False):  # several epochs: each is still told once
            pass
    keys = sorted(quarantine.reasons)
    assert [key.partition(" ")[0] for key in keys] == ["a", "a"]
    reasons = sorted(quarantine.reasons.values())
    assert ["a0.png" in reasons[0], "a1.png" in reasons[1]] == [True, True]


class Codec:
    """Real patches of a real resize, as one placeholder each."""

    vocabulary = None
    codes_per_image = 0

    def __init__(self, most: int | None):
        self.images = ImageProcessor(32, 8, most)

    def encode(self, images):
        pairs = [self.images.patches(image) for image in images]
        return [Slot(np.full(len(p), 7), p, grid) for p, grid in pairs]


@pytest.mark.parametrize("most", [None, 16])
def test_both_training_streams_leave_out_the_same(salted: Path, tmp_path: Path, most: int | None):
    template = RoleTemplate(train_bpe(["which answer"] * 4, 320))
    for number in (0, 1):
        quarantine = Quarantine(tmp_path / f"{most}-{number}.jsonl")
        samples = load_samples(str(salted), "train", on_error=quarantine.record)
        if number == 0:
            processor = Processor(template, Codec(most))  # type: ignore[arg-type]
            stream = SampleStream(samples, [chat], processor, 600, 0, quarantine)
        else:
            stream = ImageStream(
                samples, ImageProcessor(32, 8, most), 8, seed=0, quarantine=quarantine
            )
        batches = iter(stream)
        while stream.turns.counts[0].cursor < len(samples):
            batch = next(batches)
            assert np.isfinite(batch.image_patches.numpy()).all()  # type: ignore[union-attr]
        assert {*quarantine.reasons} == BAD_KEYS | bad_places(salted)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("chiasm.core.image.MOST_BYTES", 100)
    (tmp_path / "a.png").write_bytes(PNG)
    for source in (tmp_path / "a.png", PNG):
        with pytest.raises(DataError, match="more than the 100 allowed"):
            Image(source).load()
    monkeypatch.undo()
    monkeypatch.setattr("chiasm.core.image.MOST_PIXELS", 100)
    with pytest.raises(DataError, match="48x32, more than the 100 pixels allowed"):
        Image(PNG).load()
