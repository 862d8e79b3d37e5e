import io
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Message, Sample, Text, assistant, split_independent, user


@cache
def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_load_gives_rgb_from_a_file_from_bytes_and_from_an_image(tmp_path: Path, kind: str):
    data = encoded(kind)
    file = tmp_path / "x"
    file.write_bytes(data)
    decoded = PIL.Image.open(io.BytesIO(data))
    images = [Image(source).load() for source in (file, data, decoded)]
    assert {p.mode for p in images} == {"RGB"}
    assert len({p.tobytes() for p in images}) == 1


def test_a_missing_file_is_named_with_its_place_and_remedy(tmp_path: Path):
    image = Image(tmp_path / "no.png", "train.jsonl:17")
    expected = f"{tmp_path}/no.png: no such image (train.jsonl:17); correct the path or remove"
    for use in (image.load, image.digest):
        with pytest.raises(DataError, match=re.escape(expected)):
            use()


@pytest.mark.parametrize(
    "data", [b"", b"not an image", encoded("PNG")[:60], encoded("JPEG")[:300], encoded("GIF")[:40]]
)
def test_a_corrupt_or_truncated_file_is_one_line_with_place_and_remedy(tmp_path: Path, data: bytes):
    file = tmp_path / "bad.png"
    file.write_bytes(data)
    with pytest.raises(DataError) as caught:
        Image(file, "train.jsonl:3").load()
    message = str(caught.value)
    assert message.startswith(f"{file}: not a readable image: ")
    assert message.endswith("(train.jsonl:3); replace the file or remove the sample")
    assert "\n" not in message


def test_a_folder_in_place_of_an_image_is_a_data_error(tmp_path: Path):
    with pytest.raises(DataError, match="not a readable image"):
        Image(tmp_path).load()


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "TIFF", "WEBP"]), st.data())
def test_damage_never_raises_anything_but_a_data_error(kind: str, data: st.DataObject):
    damaged = bytearray(encoded(kind))
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    # A damaged header may promise a huge image, which this test need not wait for.
    with patch.object(PIL.Image, "MAX_IMAGE_PIXELS", 10_000), suppress(DataError):
        assert Image(bytes(damaged[:cut])).load().mode == "RGB"


def test_a_decompression_bomb_is_a_data_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(DataError, match="decompression bomb"):
        Image(encoded("PNG")).load()


def test_any_exception_of_a_decoder_becomes_a_data_error(monkeypatch: pytest.MonkeyPatch):
    def fail(*_, **__):
        raise RuntimeError("Failed to decode frame 0:\nDecoding of color planes failed")

    monkeypatch.setattr(PIL.Image, "open", fail)
    with pytest.raises(DataError, match="Failed to decode frame 0: Decoding of color"):
        Image(b"avif").load()


def test_digest_is_of_content_not_of_place(tmp_path: Path):
    data = encoded("PNG")
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(data)
    digests = {Image(s).digest() for s in (tmp_path / "a.png", tmp_path / "b.png", data)}
    assert len(digests) == 1
    flat = [PIL.Image.new("RGB", size) for size in ((2, 8), (4, 4))]
    assert len({Image(p).digest() for p in flat}) == 2  # equal bytes, other shape


@pytest.mark.parametrize("transparency", [None, 0])
def test_digest_of_a_decoded_palette_image_is_of_its_colours(transparency):
    """The bytes of all of them are the same: number 0 of the palette."""
    digests, loaded = set(), set()
    for colour in ((255, 0, 0), (0, 0, 255)):
        image = PIL.Image.new("P", (4, 4), 0)
        image.putpalette(list(colour))
        for info in ({}, {} if transparency is None else {"transparency": transparency}):
            image.info = info
            digests.add(Image(image).digest())
            loaded.add(Image(image).load().tobytes())
    assert len(digests) == len(loaded) == (2 if transparency is None else 3)


def test_split_independent_asks_each_question_of_the_first_turns_images():
    image = Image(b"x")
    system = Message("system", (Text("Be brief."),))
    turns = (system, user(image, "q0"), assistant("a0"), user("q1"), assistant("a1"))
    whole = Sample(turns, "s", "set", True, {"where": "train.jsonl:2"})
    first, second = split_independent(whole)
    assert first.turns == (system, user(image, "q0"), assistant("a0"))
    assert second.turns == (system, user(image, "q1"), assistant("a1"))
    assert (first.id, second.id) == ("s/0", "s/1")
    assert not first.independent
    assert second.where == "train.jsonl:2"


def test_split_independent_keeps_a_last_question_without_an_answer():
    whole = Sample((user("q0"), assistant("a0"), user("q1")), "s", independent=True)
    assert [s.turns for s in split_independent(whole)] == [whole.turns[:2], whole.turns[2:]]


def test_split_independent_leaves_dialogues_and_empty_samples_alone():
    dialogue = Sample((user("q0"), assistant("a0"), user("q1"), assistant("a1")), "s")
    empty = Sample((), "e", independent=True)
    assert split_independent(dialogue) == [dialogue]
    assert split_independent(empty) == [empty]


def test_where_names_a_sample_by_the_best_that_is_known():
    assert Sample((), "7", meta={"where": "train.jsonl:1"}).where == "train.jsonl:1"
    assert Sample((), "7").where == "sample '7'"
    assert Sample((), source="set").where == "sample 'set'"
    assert Sample(()).where == "sample '?'"
