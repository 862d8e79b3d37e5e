"""Clips: exactly the frames a policy asks for, with the container's own times; what is broken."""

import importlib.util
import re
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chiasm.core.batch import pack
from chiasm.core.errors import ConfigError, DataError, MissingExtraError
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Sample, Text, Video, assistant, user
from chiasm.data.clips import Clips, Frames
from chiasm.data.formats.messages import read_messages
from chiasm.data.text import train_bpe
from chiasm.data.video import choose, read_footage
from chiasm.generation.generator import Generator
from chiasm.hub import mllm as hub
from chiasm.hub import unified
from chiasm.mllm.config import AS_TRAINED, AnyResConfig, LinearConfig, MLLMConfig, SplitConfig
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig, UnifiedConfig
from chiasm.vision.config import VideoConfig, ViTConfig
from chiasm.vision.vit import ViT
from shared_data import SHARED

av = pytest.importorskip("av")
CLIPS = SHARED / "video-clips"
STEP = 8  # grey levels between one frame and the next


def write(path, count=30, rate=10, codec="mpeg4", size=(64, 48), between=5, **options):
    """A clip whose n-th frame is grey n · STEP."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = between
        stream.codec_context.max_b_frames = 2
        for n in range(count):
            grey = np.full((size[1], size[0], 3), n * STEP, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Three seconds, ten frames a second, a keyframe at least every half second."""
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4")


def assert_shown(footage, path):
    """The images are those that decoding all of the file finds at their times."""
    with av.open(str(path)) as container:
        every = {round(f.time, 4): f.to_ndarray(format="rgb24") for f in container.decode(video=0)}
    for frame, time in zip(footage.frames, footage.times, strict=True):
        assert np.array_equal(np.asarray(frame), every[round(time, 4)])
    assert len({frame.tobytes() for frame in footage.frames}) > 0.7 * len(footage.frames)


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv", "c.mov"])
@pytest.mark.parametrize("policy", ["uniform", "fps", "keyframes"])
def test_the_frames_are_those_at_their_times(name, policy, tmp_path):
    path = write(tmp_path / name)
    for frames in (1, 7, 30):
        footage = read_footage(path, VideoConfig(policy, frames, fps=4.0))
        assert footage.seconds == pytest.approx(3.0, abs=0.01)
        assert 1 <= len(footage.frames) <= frames
        assert footage.times == sorted(set(footage.times))
        assert_shown(footage, path)
        assert all(frame.size == (64, 48) and frame.mode == "RGB" for frame in footage.frames)


def test_policies(clip):
    def times(*config):
        return [round(t, 2) for t in read_footage(clip, VideoConfig(*config)).times]

    assert times("uniform", 3) == [0.5, 1.5, 2.5]
    assert times("fps", 8, 2.0) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert times("fps", 3, 2.0) == times("uniform", 3)  # more than allowed: spread evenly
    with av.open(str(clip)) as container:
        keys = [float(f.time) for f in container.decode(video=0) if f.key_frame]
    assert len(keys) > 4
    assert times("keyframes", 30) == [round(key, 2) for key in keys]
    assert set(times("keyframes", 3)) < {round(key, 2) for key in keys}


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.floats(0.01, 2), min_size=1, max_size=30),
    st.sampled_from(["uniform", "fps", "keyframes"]),
    st.integers(1, 12),
    st.floats(0.1, 30),
)
def test_chosen_frames_are_shown_at_the_moments_asked_for(gaps, policy, frames, fps):
    times = [0.0, *np.cumsum(gaps).tolist()]
    seconds = times[-1] + 0.1
    keys = times[::3]
    chosen = choose(times, keys, seconds, VideoConfig(policy, frames, fps))
    assert 1 <= len(chosen) <= frames
    assert chosen == sorted(set(chosen))
    if policy == "keyframes":
        assert {times[i] for i in chosen} <= set(keys)
    if policy == "uniform":
        for moment in (np.arange(frames) + 0.5) / frames * seconds:
            latest = max(i for i, time in enumerate(times) if time <= moment + 1e-6)
            assert latest in chosen


def test_a_rotated_clip_stands_upright(tmp_path):
    """A telephone held sideways writes the turn into the header: here a quarter, clockwise."""
    data = bytearray(write(tmp_path / "clip.mp4").read_bytes())
    place = data.find(b"tkhd") + 4 + 40  # after version, times, id, duration, layer, volume
    assert struct.unpack(">9i", data[place : place + 36])[:2] == (1 << 16, 0)
    turn = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    data[place : place + 36] = turn
    (tmp_path / "turned.mp4").write_bytes(data)
    footage = read_footage(tmp_path / "turned.mp4", VideoConfig(frames=2))
    assert [frame.size for frame in footage.frames] == [(48, 64)] * 2


ONE = 1 << 16
SIZE = (64, 48)
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))
ORIENTATIONS = [
    (s, 0, 0, t) for s in (ONE, -ONE) for t in (ONE, -ONE)
] + [(0, s, t, 0) for s in (ONE, -ONE) for t in (ONE, -ONE)]  # fmt: skip


def quarters(path, matrix=None, ratio=None):
    """A clip whose quarters have a colour each: red, green; blue, white."""
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    for number, colour in enumerate(COLOURS):
        y, x = number // 2 * SIZE[1] // 2, number % 2 * SIZE[0] // 2
        pixels[y : y + SIZE[1] // 2, x : x + SIZE[0] // 2] = colour
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        if ratio is not None:
            stream.codec_context.sample_aspect_ratio = ratio
        if matrix is not None:
            a, b, c, d = matrix
            stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def colours(frame):
    """Which colour is in the middle of each quarter."""
    pixels = np.asarray(frame).astype(int)
    height, width = pixels.shape[:2]
    middles = [pixels[j * height // 4, i * width // 4] for j in (1, 3) for i in (1, 3)]
    return [int(np.abs(np.array(COLOURS) - m).sum(1).argmin()) for m in middles]


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_every_display_matrix_is_followed(matrix, tmp_path):
    """A point (p, q) from the middle is shown at (a·p + c·q, b·p + d·q), q downwards
    (libavutil/display.h)."""
    path = quarters(tmp_path / "a.mp4", matrix)
    (frame,) = read_footage(path, VideoConfig(frames=1)).frames
    a, b, c, d = (part // ONE for part in matrix)
    assert frame.size == (SIZE if a else SIZE[::-1])
    expected = [0] * 4
    for number in range(4):
        q, p = (2 * place - 1 for place in divmod(number, 2))
        x, y = a * p + c * q, b * p + d * q
        expected[(y > 0) * 2 + (x > 0)] = number
    assert colours(frame) == expected


@pytest.mark.parametrize(("ratio", "size"), [((4, 3), (85, 48)), ((1, 2), (32, 48))])
@pytest.mark.parametrize("turned", [False, True])
def test_pixels_that_are_not_square_are_stretched(ratio, size, turned, tmp_path):
    matrix = (0, ONE, -ONE, 0) if turned else None
    path = quarters(tmp_path / "a.mp4", matrix, Fraction(*ratio))
    (frame,) = read_footage(path, VideoConfig(frames=1)).frames
    assert frame.size == (size[::-1] if turned else size)
    assert colours(frame) == ([2, 0, 3, 1] if turned else [0, 1, 2, 3])
    with pytest.raises(DataError, match=f"5 frames of {size[0]}x48 have more than"):
        read_footage(path, VideoConfig(frames=1), most=5 * size[0] * 48 - 1)


def test_pixels_of_an_absurd_shape_are_refused(tmp_path, monkeypatch):
    """A header may say 65,535 to 1: a frame of 4 million columns."""
    monkeypatch.setattr("chiasm.data.video.MOST_STRETCH", 1.5)
    path = quarters(tmp_path / "a.mp4", ratio=Fraction(1, 2))
    with pytest.raises(DataError, match="its pixels are 1/2 times as wide as high"):
        read_footage(path, VideoConfig(frames=1))


def without(data, share):
    return data[: int(len(data) * share)]


def claiming(data, name, at, form, value):
    """A file whose header field after `name` says something else."""
    data = bytearray(data)
    place = data.find(name) + len(name) + at
    data[place : place + struct.calcsize(form)] = struct.pack(form, value)
    return bytes(data)


def two_hours(data):
    """An MP4 all of whose headers say so: file, track, edit, medium and the table of times."""
    for name, at, value in (
        (b"mvhd", 16, 7200 * 1000),
        (b"tkhd", 20, 7200 * 1000),
        (b"elst", 8, 7200 * 1000),
        (b"mdhd", 16, 7200 * 10240),
        (b"stts", 8, 7200 * 10),
    ):
        data = claiming(data, name, at, ">I", value)
    return data


def test_broken_files_are_one_line_each(tmp_path):
    mp4 = write(tmp_path / "a.mp4").read_bytes()
    early = write(tmp_path / "b.mp4", movflags="faststart").read_bytes()  # the header first
    mkv = write(tmp_path / "c.mkv").read_bytes()
    cases = {
        "empty.mp4": (b"", r"an empty file \(0 bytes\)"),
        "headless.mp4": (without(mp4, 0.6), "no images in it, or it is truncated"),
        "cut.mp4": (without(early, 0.7), r"its header says 3.0 seconds but its frames end after"),
        "cut.mkv": (without(mkv, 0.4), r"its header says 3.0 seconds but its frames end after"),
        # Two hours: the one duration of a Matroska file, all of them in an MP4.
        "long.mkv": (
            claiming(mkv, b"\x44\x89\x88", 0, ">d", 7200e3),
            r"says 7200.0 seconds but its frames end after 3.0, so .* its header is wrong",
        ),
        "long.mp4": (
            two_hours(mp4),
            r"says 7200.0 seconds but its frames end after 3.0",
        ),
        "words.mp4": (b"these are words, not images" * 40, "not a readable video"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=message) as error:
            read_footage(tmp_path / name, VideoConfig(), "train.jsonl:3")
        text = str(error.value)
        assert "\n" not in text
        assert name in text
        assert "(train.jsonl:3); replace the file or remove the sample" in text
    with pytest.raises(DataError, match=r"no such video \(train.jsonl:3\); correct the path"):
        read_footage(tmp_path / "missing.mp4", VideoConfig(), "train.jsonl:3")


def test_a_header_that_no_reader_needs_deceives_nobody(tmp_path):
    """The whole file's duration in an MP4; its time table knows better."""
    data = write(tmp_path / "a.mp4").read_bytes()
    place = data.find(b"mvhd")
    (scale,) = struct.unpack(">I", data[place + 16 : place + 20])
    (tmp_path / "b.mp4").write_bytes(claiming(data, b"mvhd", 16, ">I", 7200 * scale))
    footage = read_footage(tmp_path / "b.mp4", VideoConfig(frames=3))
    assert footage.seconds == pytest.approx(3.0)
    assert footage.times == pytest.approx([0.5, 1.5, 2.5])
    assert_shown(footage, tmp_path / "a.mp4")


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="no images in it, only sound"):
        read_footage(tmp_path / "sound.mkv", VideoConfig())


def test_without_pyav_the_extra_is_named(clip, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install -e '\.\[video\]'"):
        read_footage(clip, VideoConfig())


# In a model.

VISION = ViTConfig(image_size=16, patch_size=4, width=16, layers=1, heads=2)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    words = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(["what happens in it? <0.5 seconds> red user"] * 4, 290),
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    words.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def model_of(llama, video, images=AS_TRAINED):
    torch.manual_seed(1)
    config = MLLMConfig(
        language_model=str(llama),
        projector=LinearConfig(),
        lora=None,
        video=video,
        image_processing=images,
    )
    model, processor = hub.build(config, ViT(VISION))
    return model.eval(), processor


def asked(clip):
    return Sample((user("what happens in ", Video(clip), "?"), assistant("red")), "clip")


def text_of(processor, encoded):
    return processor.template.tokenizer.decode(encoded.input_ids)


def test_times_stand_before_the_frames(clip, llama):
    _, processor = model_of(llama, VideoConfig(frames=2))
    text = text_of(processor, processor.encode(asked(clip)))
    frame = "<image>" * 16
    assert f"in <0.7 seconds>{frame}<2.2 seconds>{frame}?" in text
    _, processor = model_of(llama, VideoConfig(frames=2, timestamps=False))
    assert f"in {frame}{frame}?" in text_of(processor, processor.encode(asked(clip)))


@pytest.mark.parametrize("images", [AS_TRAINED, AnyResConfig(), SplitConfig(longest_edge=32)])
@pytest.mark.parametrize("budget", [16, 40, 80, 1000])
def test_a_clip_keeps_to_its_budget_by_averaging_neighbours(images, budget, clip, llama):
    model, processor = model_of(llama, VideoConfig(frames=6, max_tokens=budget), images)
    if isinstance(images, SplitConfig) and budget == 16:
        with pytest.raises(ConfigError, match=r"max_tokens: 16, but one frame takes \d+; raise"):
            processor.encode(asked(clip))
        return
    encoded = processor.encode(asked(clip))
    batch = pack([[encoded]])
    slots = batch.input_ids == model.image_token
    assert 0 < int(slots.sum()) <= budget
    footage = read_footage(clip, VideoConfig(frames=6))
    count = int(slots.sum()) // 16
    group = -(-6 // count)
    alone = [processor.clips.codec.encode([frame])[0] for frame in footage.frames]
    with torch.no_grad():
        seen = [
            model.see(torch.from_numpy(slot.image_patches), torch.tensor([slot.grid]))
            for slot in alone
        ]
        expected = [torch.stack(seen[i : i + group]).mean(0) for i in range(0, 6, group)]
        found = model.embed(batch)[slots]
    torch.testing.assert_close(found, torch.cat(expected))
    text = text_of(processor, encoded)
    for i in range(0, 6, group):
        mean = sum(footage.times[i : i + group]) / len(footage.times[i : i + group])
        assert f"<{mean:.1f} seconds><image>" in re.sub("<fake[^>]*><gl[^>]*>", "", text)


@pytest.mark.parametrize(("budget", "shown"), [(1024, [0, 1, 2, 3]), (40, [0, 2]), (20, [0])])
def test_of_codes_the_first_of_neighbours_stands_for_all(clip, budget, shown):
    torch.manual_seed(0)
    config = UnifiedConfig(hidden_size=32, layers=1, heads=2, kv_heads=2, intermediate_size=48,
                           video=VideoConfig(frames=4, max_tokens=budget))  # fmt: skip
    codes = Autoencoder(AutoencoderConfig(image_size=32, decoder_channels=64, decoder_blocks=1))
    words = train_bpe(["what happens in it? <0.5 seconds> red"] * 4, 300)
    model, processor = unified.build(config, words, codes)
    encoded = processor.encode(asked(clip))
    frames = read_footage(clip, config.video).frames
    assert len({f.tobytes() for f in frames}) == 4
    expected = [slot.input_ids for slot in processor.codec.encode([frames[i] for i in shown])]
    begins = np.flatnonzero(encoded.input_ids == processor.codec.vocabulary.begin_image)
    for start, ids in zip(begins, expected, strict=True):
        assert np.array_equal(encoded.input_ids[start : start + len(ids)], ids)
    loss = model.loss(pack([[encoded]]))
    assert loss.count
    assert torch.isfinite(loss.sum)


def test_packed_clips_images_and_words_equal_each_alone(clip, llama):
    model, processor = model_of(llama, VideoConfig(frames=5, max_tokens=40))
    image = Image(read_footage(clip, VideoConfig(frames=1)).frames[0])
    several = Sample(
        (user(Video(clip), "what?"), assistant("red"), user("is it?"), assistant("no")),
        "branches",
        independent=True,
    )
    mixed = Sample((user(image, "or", Video(clip), image, "?"), assistant("it")), "mixed")
    texts = Sample((user("what?"), assistant("red")), "text")
    encoded = [processor.encode(s) for s in (asked(clip), several, texts, mixed)]
    alone = sum(model.loss(pack([[e]])).sum for e in encoded)
    torch.testing.assert_close(model.loss(pack([encoded[:3], encoded[3:]])).sum, alone)
    single = [
        Sample((user(Video(clip), words), assistant(reply)))
        for words, reply in (("what?", "red"), ("is it?", "no"))
    ]
    apart = sum(model.loss(pack([[processor.encode(s)]])).sum for s in single)
    torch.testing.assert_close(model.loss(pack([[encoded[1]]])).sum, apart)


def test_prompts_with_the_same_image_and_other_clips_stay_apart(clip, llama, tmp_path):
    _, processor = model_of(llama, VideoConfig(frames=2))
    image = Image(read_footage(clip, VideoConfig(frames=1)).frames[0])
    other = write(tmp_path / "other.mp4", 12)
    pair = [Sample((user(image, "or", Video(path)),)) for path in (clip, other)]
    prompts = processor.prompts(pair)
    assert [members for _, members in prompts] == [[0], [1]]
    assert not np.array_equal(prompts[0][0].image_patches, prompts[1][0].image_patches)


def test_clips_that_are_too_long_or_not_wanted_are_refused(clip, llama):
    _, processor = model_of(llama, VideoConfig())
    processor.max_length = 60
    with pytest.raises(DataError, match="more than the 60 allowed"):
        processor.encode(asked(clip))
    processor.clips = None
    with pytest.raises(DataError, match="Video is not something this model can read"):
        processor.encode(asked(clip))
    with pytest.raises(ConfigError, match="frames, fps and max_tokens must be positive"):
        Clips(VideoConfig(frames=0), processor.codec)


def test_frames_are_told_apart_by_content(clip, llama):
    _, processor = model_of(llama, VideoConfig(frames=4, max_tokens=32))
    parts = [p for p in processor.clips.parts(Video(clip)) if isinstance(p, Frames)]
    assert [len(p.frames) for p in parts] == [2, 2]
    assert len({p.digest() for p in parts}) == 2
    assert Frames(parts[0].frames[0], "", parts[0].frames).digest() == parts[0].digest()


real = pytest.mark.skipif(not CLIPS.exists(), reason="no shared clips on this machine")


def assert_times_are_the_containers(path, policies):
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.pts is not None]
    times = {round(float(packet.pts * packet.time_base), 4) for packet in packets}
    for policy in policies:
        footage = read_footage(path, VideoConfig(policy, 4))
        assert len(footage.frames) >= 2
        assert {round(time, 4) for time in footage.times} <= times
        assert footage.seconds == pytest.approx(max(times), abs=0.05)


@real
def test_a_real_clip_from_file_to_answer(llama):
    model, processor = model_of(llama, VideoConfig("uniform", 3, max_tokens=32))
    samples = read_messages(CLIPS / "test.jsonl")
    sample = min(samples, key=lambda s: s.videos[0].path.stat().st_size)
    assert_times_are_the_containers(sample.videos[0].path, ["keyframes"])
    times = [p.text for p in processor.clips.parts(sample.videos[0]) if isinstance(p, Text)]
    assert len(times) == 2
    prompt = sample.replace(turns=sample.turns[:1])
    pieces = list(Generator(model, processor)([prompt], SamplingParams(max_tokens=4)))
    assert {index for index, _ in pieces} == {0}
    assert pieces[-1][1].finish in ("stop", "length")
    loss = model.loss(pack([[processor.encode(sample)]]))
    assert loss.count > 5
    assert torch.isfinite(loss.sum)


@pytest.mark.slow
@real
def test_all_real_clips_by_every_policy():
    samples = read_messages(CLIPS / "test.jsonl")
    assert len(samples) == 6
    for sample in samples:
        policies = ["uniform", "fps", "keyframes"]
        assert_times_are_the_containers(sample.videos[0].path, policies)
