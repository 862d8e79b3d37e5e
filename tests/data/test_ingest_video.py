"""Videos made here, a colour a second: frames at their times, captions, bad files."""

import json
from pathlib import Path

import numpy as np
import pytest

from chiasm import cli
from chiasm.core.errors import DataError
from chiasm.core.progress import silent
from chiasm.core.sample import Video
from chiasm.data.formats.messages import read_messages
from chiasm.data.ingest.video import (
    Caption,
    VideoOptions,
    ingest_video,
    parse_cues,
    read_captions,
    sample_frames,
)

av = pytest.importorskip("av")

COLORS = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 230, 30))
RATE = 5


def write_video(path: Path, seconds: int = 4, shade: int = 0) -> None:
    """A second each of red, green, blue and yellow, 96 × 64 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for n in range(seconds * RATE):
            pixels = np.full((64, 96, 3), COLORS[n // RATE % 4], np.uint8)
            pixels[:8] = shade
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def color_of(image) -> int:
    middle = np.asarray(image)[image.height // 2, image.width // 2].astype(int)
    distance = [np.abs(middle - color).max() for color in COLORS]
    assert min(distance) < 60
    return int(np.argmin(distance))


def test_frames_are_those_of_the_middles_of_equal_parts(tmp_path):
    write_video(tmp_path / "v.mp4")
    frames = sample_frames(tmp_path / "v.mp4", Caption("x"), 4, 48)
    assert [color_of(image) for _, image in frames] == [0, 1, 2, 3]
    assert np.allclose([second for second, _ in frames], [0.5, 1.5, 2.5, 3.5], atol=1 / RATE)
    assert {image.size for _, image in frames} == {(48, 32)}
    third = sample_frames(tmp_path / "v.mp4", Caption("x", 2.0, 3.0), 2, 48)
    assert [color_of(image) for _, image in third] == [2, 2]
    (one,) = sample_frames(tmp_path / "v.mp4", Caption("x", 3.5, 9.0), 1, 96)
    assert color_of(one[1]) == 3
    few = sample_frames(tmp_path / "v.mp4", Caption("x", 0.0, 1.0), 50, 96)
    assert len(few) <= RATE + 1


def test_cues_of_srt_and_vtt():
    srt = "1\r\n00:00:01,500 --> 00:00:03,000\r\nRed <i>boats</i>\r\ncome in\r\n\r\n2\r\n"
    assert parse_cues(srt) == [Caption("Red boats come in", 1.5, 3.0)]
    vtt = "WEBVTT\n\nNOTE nothing\n\n01:02.250 --> 01:04.000 align:left\nA house\n\n"
    assert parse_cues(vtt) == [Caption("A house", 62.25, 64.0)]
    assert parse_cues("1\n00:00:03,000 --> 00:00:01,000\nbackwards") == []


def test_captions_are_read_from_the_file_beside(tmp_path):
    with pytest.raises(DataError, match=r"add v\.txt"):
        read_captions(tmp_path / "v.mp4")
    (tmp_path / "v.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nRed\n")
    assert read_captions(tmp_path / "v.mp4") == [Caption("Red", 0.0, 1.0)]
    (tmp_path / "v.txt").write_text(" Four colours \n")
    assert read_captions(tmp_path / "v.mp4") == [Caption("Four colours")]
    (tmp_path / "v.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_captions(tmp_path / "v.mp4")
    (tmp_path / "v.txt").write_text(" ")
    with pytest.raises(DataError, match="holds no caption"):
        read_captions(tmp_path / "v.mp4")


def test_a_folder_with_bad_files_keeps_the_good_and_names_the_rest(tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    for n in range(3):
        write_video(folder / f"v{n}.mp4", shade=50 * n)
        (folder / f"v{n}.txt").write_text(f"colours {n}")
    (folder / "v2.txt").unlink()
    (folder / "v2.vtt").write_text(
        "WEBVTT\n\n00:00.000 --> 00:01.000\nred\n\n00:02.000 --> 00:03.000\nblue\n\n"
        "00:09.000 --> 00:10.000\nnothing\n"
    )
    write_video(folder / "silent.mp4", shade=200)
    (folder / "junk.mp4").write_bytes(b"junk")
    (folder / "junk.txt").write_text("junk")
    cli.main(["data", "video", str(folder), "-o", str(out), "--frames", "2"])
    assert "3 skipped" in capsys.readouterr().err
    rows = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    reasons = {row["source"]: row["reason"] for row in rows}
    assert set(reasons) == {"silent.mp4", "junk.mp4", "v2.mp4 caption 3"}
    samples = read_messages(out / "train.jsonl") + read_messages(out / "test.jsonl")
    assert {s.turns[1].text for s in samples} == {"colours 0", "colours 1", "red", "blue"}
    for sample in samples:
        assert len(sample.images) == 2
        if sample.turns[1].text in ("red", "blue"):
            wanted = {"red": 0, "blue": 2}[sample.turns[1].text]
            assert [color_of(image.load()) for image in sample.images] == [wanted] * 2


def test_no_frames_keeps_the_clip(tmp_path):
    write_video(tmp_path / "in" / "v.mp4", 1)
    (tmp_path / "in" / "v.txt").write_text("red")
    ingest_video(tmp_path / "in", tmp_path / "out", VideoOptions(frames=0), silent)
    (sample,) = read_messages(tmp_path / "out")
    (clip,) = [p for p in sample.turns[0].content if isinstance(p, Video)]
    assert clip.path.read_bytes() == (tmp_path / "in" / "v.mp4").read_bytes()
    assert clip.path.is_relative_to(tmp_path / "out")
