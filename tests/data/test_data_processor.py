"""From conversations to arrays: what is supervised, what shares a trunk, what is dropped."""

import itertools

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from chiasm.core.batch import IGNORE, Slot
from chiasm.core.errors import ConfigError, DataError
from chiasm.core.sample import Image, Message, Sample, assistant, split_independent, user
from chiasm.data.objectives import (
    at_most,
    by_name,
    caption,
    chat,
    moved,
    text_to_image,
    with_caption,
    without,
)
from chiasm.data.processor import Processor
from chiasm.data.quarantine import Quarantine
from chiasm.data.stream import KnapsackStream, SampleStream
from chiasm.data.template import ChatTemplate, RoleTemplate
from chiasm.data.text import SPECIALS, train_bpe

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BARE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}"
    "{{ eos_token }}{% else %}[{{ m.role }}] {{ m.content }} [/]{% endif %}{% endfor %}"
)
WORDS = train_bpe(["what colour is the circle? it is red, really. system user assistant"] * 4, 320)


def chat_template(template=CHATML, trim=False):
    """A chat template over a byte-level BPE; trim: offsets leave out spaces, as Llama 3's do."""
    words = train_bpe(["what colour is the circle?   it is red, really"] * 4, 320)
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.post_processor = processors.ByteLevel(trim_offsets=trim)
    eos = "<|im_end|>" if template is CHATML else "</s>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token=eos,
        bos_token="<s>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = template
    return ChatTemplate(tokenizer)


def role():
    return RoleTemplate(WORDS)


class Codec:
    """Images as `width // 8` placeholders with patches, or as codes without."""

    vocabulary = None
    codes_per_image = 0

    def __init__(self, marker, continuous=True):
        self.marker, self.continuous, self.calls = marker, continuous, 0

    def encode(self, images):
        self.calls += len(images)
        return [self._slot(image) for image in images]

    def outline(self, size):
        count = size[0] // 8
        return Slot(np.full(count, self.marker), None, (1, count))

    def _slot(self, image):
        count = image.width // 8
        ids = np.full(count, self.marker)
        if not self.continuous:
            ids = 1000 + np.arange(count) + image.getpixel((0, 0))[0]
        patches = np.full((count, 2), image.getpixel((0, 0))[0], np.float32)
        return Slot(ids, patches if self.continuous else None, (1, count))


def processor(template=None, continuous=True, marker=900, **options):
    return Processor(template or role(), Codec(marker, continuous), **options)


def image(value=0, width=16):
    return Image(PIL.Image.new("RGB", (width, 8), (value, 0, 0)))


def runs(ids, supervised):
    """The maximal runs of supervised ids."""
    pairs = itertools.groupby(zip(ids, supervised, strict=True), key=lambda pair: pair[1])
    return [[i for i, _ in group] for on, group in pairs if on]


PRINTABLE = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12)
FIXED = st.text("ab cé\n🙂", max_size=12)


# Templates.


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(PRINTABLE, PRINTABLE), min_size=1, max_size=4), st.booleans())
def test_role_template_supervises_the_assistants_words_and_the_end(pairs, system):
    template = role()
    turns = [Message("system", user("be brief").content)] if system else []
    for asked, reply in pairs:
        turns += [user(asked), assistant(reply)]
    tokens = template.render(turns, reply=False)
    spoken = runs(tokens.ids, tokens.supervised)
    assert len(spoken) == len(pairs)
    for ids, (_, reply) in zip(spoken, pairs, strict=True):
        assert ids[-1] == template.end
        assert template.decode(ids) == template.decode(ids[:-1]) == reply
    assert tokens.ids[0] == template.begin
    invited = template.render(turns[:-1], reply=True)
    assert invited.ids == tokens.ids[: len(invited.ids)]
    assert invited.ids[-1:] == template.roles["assistant"]


@pytest.mark.parametrize("name", SPECIALS)
def test_words_that_look_like_special_tokens_stay_words(name):
    template = role()
    special = {WORDS.token_to_id(s) for s in SPECIALS}
    asked, reply = f"what is {name}?", f"it is {name}{name} red"
    tokens = template.render([user(asked), assistant(reply)], reply=False)
    structure = [i for i in tokens.ids if i in special]
    assert structure == [
        template.begin,
        *template.roles["user"],
        *template.roles["assistant"],
        template.end,
    ]
    assert template.decode(runs(tokens.ids, tokens.supervised)[0]) == reply
    assert template.marker not in tokens.ids


def test_an_empty_reply_still_teaches_to_stop():
    template = role()
    tokens = template.render([user("what?"), assistant("")], reply=False)
    assert runs(tokens.ids, tokens.supervised) == [[template.end]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(FIXED, FIXED), min_size=1, max_size=4),
    st.sampled_from(["plain", "trimmed", "bare"]),
    st.booleans(),
)
def test_chat_template_supervises_the_assistants_words_and_the_first_end(pairs, kind, system):
    template = CHATS[kind]
    turns = [Message("system", user("be brief").content)] if system else []
    for asked, reply in pairs:
        turns += [user(asked), assistant(reply)]
    tokens = template.render(turns, reply=False)
    spoken = runs(tokens.ids, tokens.supervised)
    assert len(spoken) == len(pairs)
    lead = " " if kind == "bare" else ""  # this template has no generation prompt to hold it
    for ids, (_, reply) in zip(spoken, pairs, strict=True):
        assert ids[-1] == template.tokenizer.eos_token_id
        assert ids.count(template.tokenizer.eos_token_id) == 1
        assert template.tokenizer.decode(ids[:-1]) == lead + reply
    assert tokens.supervised[-1]
    invited = template.render(turns[:-1], reply=True)
    assert invited.ids == tokens.ids[: len(invited.ids)]


CHATS = {
    "plain": chat_template(),
    "trimmed": chat_template(trim=True),
    "bare": chat_template(BARE),
}


def test_chat_template_puts_markers_where_images_are():
    template = chat_template()
    turns = [user("left ", image(), " right ", image()), assistant("red")]
    tokens = template.render(turns, reply=False)
    assert tokens.ids.count(template.marker) == 2
    text = template.tokenizer.decode(tokens.ids)
    assert "user\nleft <image> right <image><|im_end|>" in text
    assert not any(
        s for i, s in zip(tokens.ids, tokens.supervised, strict=True) if i == template.marker
    )


def test_chat_template_refuses_what_it_cannot_do():
    template = chat_template()
    template.tokenizer.chat_template = "{{ messages | length }}" + CHATML
    with pytest.raises(DataError, match="rewrites earlier turns"):
        template.render([user("a"), assistant("b")], reply=False)
    # A prompt is read as the template writes it; without loss on what was said before.
    asked = template.render([user("a"), assistant("b"), user("c")], reply=True)
    assert template.tokenizer.decode(asked.ids).startswith("3<|im_start|>user")
    assert not any(asked.supervised)
    template.tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        ChatTemplate(template.tokenizer)


# Encoding.


def test_targets_are_the_next_supervised_ids():
    maker = processor()
    turns = (user(image(), "what?"), assistant("it is red"), user("is it?"), assistant("yes"))
    encoded = maker.encode(Sample(turns, "s"))
    tokens = maker.template.render(turns, reply=False)
    place = tokens.ids.index(-1)
    ids = [*tokens.ids[:place], 900, 900, *tokens.ids[place + 1 :]]
    loss = [*tokens.supervised[:place], False, False, *tokens.supervised[place + 1 :]]
    assert encoded.input_ids.tolist() == ids
    assert encoded.labels.tolist() == [
        t if on else IGNORE for t, on in zip([*ids[1:], 0], [*loss[1:], False], strict=True)
    ]
    assert encoded.position_ids.tolist() == encoded.block_ids.tolist() == list(range(len(ids)))
    assert not encoded.branch_ids.any()
    assert encoded.image_grids.tolist() == [[1, 2]]
    assert encoded.name == "s"


@pytest.mark.parametrize("supervise", [False, True])
def test_codes_are_learned_where_the_assistant_draws_and_elsewhere_by_choice(supervise):
    maker = processor(continuous=False, supervise_images=supervise)
    read = maker.encode(Sample((user(image(), "what?"), assistant("red"))))
    drawn = maker.encode(Sample((user("red"), assistant(image()))))
    assert ({1000, 1001} <= set(read.labels)) == supervise
    assert {1000, 1001} <= set(drawn.labels)
    assert read.image_patches is drawn.image_patches is None


def test_independent_questions_are_branches_that_equal_single_conversations():
    maker = processor(continuous=False)
    sample = Sample(
        (
            user("say ", image(3)),
            assistant("red"),
            user("shape?"),
            assistant("a circle"),
            user("so?"),
            assistant("no"),
        ),
        "s",
        independent=True,
    )
    joint = maker.encode(sample)
    trunk = joint.branch_ids == 0
    for number, single in enumerate(split_independent(sample), 1):
        alone = maker.encode(single)
        mine = trunk | (joint.branch_ids == number)
        for name in ("input_ids", "labels", "block_ids", "position_ids"):
            assert getattr(joint, name)[mine].tolist() == getattr(alone, name).tolist(), name
    assert joint.input_ids.tolist().count(1003) == 1
    assert joint.image_grids.tolist() == [[1, 2]]


def prompts_alone(maker, sample):
    return maker.prompts([sample])[0][0]


def assert_branches_equal_single_prompts(maker, samples):
    for encoded, members in maker.prompts(samples):
        for number, index in enumerate(members, 1):
            alone = prompts_alone(maker, samples[index])
            mine = encoded.branch_ids == (number if len(members) > 1 else 0)
            mine |= encoded.branch_ids == 0
            for name in ("input_ids", "block_ids", "position_ids"):
                assert getattr(encoded, name)[mine].tolist() == getattr(alone, name).tolist()
        placeholders = int((encoded.input_ids == 900).sum())
        patches = 0 if encoded.image_patches is None else len(encoded.image_patches)
        assert placeholders == patches


def test_prompts_of_neighbours_with_the_same_image_share_it():
    maker = processor()
    asked = [
        Sample((user(image(n), text),))
        for n, text in (
            (1, "what?"),
            (1, "red?"),
            (2, "what?"),
            (1, "so?"),
            (1, "no?"),
            (1, "shape?"),
        )
    ]
    found = maker.prompts(asked)
    assert [members for _, members in found] == [[0, 1], [2], [3, 4, 5]]
    assert [len(e.image_patches) for e, _ in found] == [2, 2, 2]
    assert_branches_equal_single_prompts(maker, asked)


def test_prompts_without_images_or_with_several_stay_alone():
    maker = processor()
    asked = [
        Sample((user("what?"),)),
        Sample((user("what?"),)),
        Sample((user(image(1), image(2), "?"),)),
        Sample((user(image(1), image(2), "?"),)),
    ]
    assert [members for _, members in maker.prompts(asked)] == [[0], [1], [2], [3]]


@pytest.mark.parametrize(
    "pair",
    [
        (
            Sample((user("what is ", image(1), "?"),)),
            Sample((user("is ", image(1), "?"),)),
        ),
        (Sample((user(image(1), "a"),)), Sample((user("b ", image(1)),))),
        (
            Sample((Message("system", user("be brief").content), user(image(1), "a"))),
            Sample((user(image(1), "a"),)),
        ),
        (
            Sample((user("hello"), assistant("hi"), user(image(1), "a"))),
            Sample((user(image(1), "a"),)),
        ),
    ],
)
def test_neighbours_that_differ_before_the_image_do_not_share_it(pair):
    """Their trunk would end before the image, and each branch would need its own."""
    assert_branches_equal_single_prompts(processor(), list(pair))


def test_a_dialogue_and_a_question_about_the_same_image_share_it():
    pair = [
        Sample((user(image(1), "a"),)),
        Sample((user(image(1), "a"), assistant("b"), user("c"))),
    ]
    maker = processor()
    assert [members for _, members in maker.prompts(pair)] == [[0, 1]]
    assert_branches_equal_single_prompts(maker, pair)


def test_the_longest_conversation_loses_its_later_turns():
    turns = [user(image(), "what?"), assistant("red")]
    for n in range(5):
        turns += [user(f"and {n}?"), assistant("it is red")]
    whole = processor().encode(Sample(tuple(turns)))
    for count in range(1, 6):
        shorter = processor().encode(Sample(tuple(turns[: 2 * count])))
        cut = processor(max_length=len(shorter)).encode(Sample(tuple(turns)))
        assert cut.input_ids.tolist() == shorter.input_ids.tolist()
        assert cut.labels.tolist() == shorter.labels.tolist()
    assert len(processor(max_length=len(whole)).encode(Sample(tuple(turns)))) == len(whole)


def test_what_does_not_fit_is_an_error_and_never_a_lost_image():
    sample = Sample((user(image(width=80), "what?"), assistant("red")), "s3")
    length = len(processor().encode(sample))
    with pytest.raises(DataError, match=f"'s3'.*{length} tokens, more than the {length - 1} all"):
        processor(max_length=length - 1).encode(sample)
    wide = user(image(width=80))
    late = Sample((user("hello"), assistant("yes"), wide, assistant("red")), "s4")
    with pytest.raises(DataError, match=r"'s4'.*more than the 20 allowed"):
        processor(max_length=20).encode(late)
    with pytest.raises(DataError, match="more than the 20 allowed"):
        processor(max_length=20).prompts([Sample((user("what colour is it? " * 9),))])


@pytest.mark.parametrize("turns", [(), (Message("user", ()),), (assistant("hello"),)])
def test_empty_conversations_are_named(turns):
    for act in (processor().encode, lambda s: processor().prompts([s])):
        with pytest.raises(DataError, match=r"train.jsonl:4.*an empty conversation"):
            act(Sample(turns, "s", meta={"where": "train.jsonl:4"}))


def test_nothing_to_learn_is_an_error():
    with pytest.raises(DataError, match="no assistant words to learn from"):
        processor().encode(Sample((user("what?"),), "s"))


def test_images_are_remembered_by_content():
    maker = processor(remember=True)
    for value in (1, 2, 1, 1):
        maker.encode(Sample((user(image(value), "a"), assistant("b"))))
    assert maker.codec.calls == 2


# Views.


def captioned(n=0, caption="a red circle"):
    return Sample(
        (
            user(image(n), "q0"),
            assistant("a0"),
            user("q1"),
            assistant("a1"),
            user("q2"),
            assistant("a2"),
            user("q3"),
            assistant("a3"),
        ),
        f"s{n}",
        independent=True,
        meta={"caption": caption},
    )


def rng(seed=0):
    return np.random.default_rng(seed)


def test_describe_and_draw_are_each_others_mirror():
    sample = captioned()
    seen, drawn = caption(sample, rng()), text_to_image(sample, rng())
    assert [t.role for t in seen.turns] == [t.role for t in drawn.turns] == ["user", "assistant"]
    assert seen.turns[0].content == drawn.turns[1].content == sample.images
    assert seen.turns[1].text == drawn.turns[0].text == "a red circle"
    assert not seen.independent
    assert not drawn.independent
    assert chat(sample, rng()) is sample


def test_describe_and_draw_need_a_caption_and_an_image():
    for view in (caption, text_to_image):
        assert view(captioned(caption=None), rng()) is None
        assert view(Sample((user("a"), assistant("b"))), rng()) is None


def test_drop_leaves_out_the_caption_as_often_as_said():
    dropped = [
        text_to_image(captioned(), rng(n), drop=0.25).turns[0].content == () for n in range(2000)
    ]
    assert 0.2 < np.mean(dropped) < 0.3
    assert all(
        text_to_image(captioned(), rng(n), drop=1.0).turns[0].content == () for n in range(20)
    )
    kept = [text_to_image(captioned(), rng(n)) for n in range(20)]
    assert all(s.turns[0].text == "a red circle" and s.turns[1].content for s in kept)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 99), st.booleans())
def test_at_most_keeps_whole_pairs_in_order_and_the_image_first(count, seed, system):
    sample = captioned()
    if system:
        sample = sample.replace(turns=(Message("system", user("brief").content), *sample.turns))
    seen = at_most(chat, count)(sample, rng(seed))
    turns = [t for t in seen.turns if t.role != "system"]
    assert len(turns) == 2 * min(count, 4)
    numbers = [int(t.text[1]) for t in turns[::2]]
    assert [t.text for t in turns[1::2]] == [f"a{n}" for n in numbers]
    assert numbers == sorted(set(numbers))
    assert seen.images == sample.images
    assert turns[0].content[0] is sample.images[0]
    assert (seen.turns[0].role == "system") == system


def test_at_most_chooses_every_question_and_leaves_dialogues_whole():
    view = at_most(chat, 1)
    assert {view(captioned(), rng(n)).turns[0].text for n in range(60)} == {"q0", "q1", "q2", "q3"}
    dialogue = captioned().replace(independent=False)
    assert view(dialogue, rng()) is dialogue


def test_with_caption_adds_a_branch_that_asks_nothing():
    seen = with_caption(at_most(chat, 1))(captioned(), rng())
    assert [t.text for t in seen.turns[2:]] == ["", "a red circle"]
    assert len(split_independent(seen)) == 2
    for sample in (captioned(caption=None), captioned().replace(independent=False)):
        assert with_caption(chat)(sample, rng()) is sample


def test_without_leaves_out_the_captions_it_is_told():
    sample = captioned()
    assert without(text_to_image, ("a blue square",))(sample, rng()) == text_to_image(sample, rng())
    assert without(text_to_image, ("a blue square", "a red circle"))(sample, rng()) is None
    assert without(chat, ("a red circle",))(captioned(caption=None), rng()) is not None


def test_moved_moves_each_image_once_and_nothing_else():
    pixels = rng().integers(0, 256, (8, 8, 3), np.uint8)
    image = Image(PIL.Image.fromarray(pixels), "there")
    sample = Sample((user(image, "a"), assistant("b"), user(image, "c"), assistant("d")))
    seen = moved(chat, 2)(sample, rng(1))
    assert [t.text for t in seen.turns] == ["a", "b", "c", "d"]
    assert seen.images[0] is seen.images[1]
    assert seen.images[0].where == "there"
    array = np.asarray(seen.images[0].load())
    shifts = [
        (y, x)
        for y in range(-2, 3)
        for x in range(-2, 3)
        if np.array_equal(
            array, pixels[np.clip(np.arange(8) - y, 0, 7)][:, np.clip(np.arange(8) - x, 0, 7)]
        )
    ]
    assert len(shifts) == 1
    assert np.array_equal(np.asarray(moved(chat, 0)(sample, rng()).images[0].load()), pixels)
    assert moved(text_to_image, 2)(captioned(caption=None), rng()) is None


def test_views_by_name():
    views = {"chat": chat, "text_to_image": text_to_image}
    assert by_name("text_to_image+chat", views) == [text_to_image, chat]
    with pytest.raises(ConfigError, match=r"unknown objective 'paint'; .*has chat, text_to_image"):
        by_name("paint", views)


# The stream.


def stream(samples, views=(chat,), tokens=120, seed=0, **options):
    return SampleStream(samples, list(views), processor(continuous=False), tokens, seed, **options)


def take(source, count):
    return list(itertools.islice(source, count))


def assert_batches_equal(a, b):
    for x, y in zip(a, b, strict=True):
        assert x.names == y.names
        for name in (
            "input_ids",
            "labels",
            "segment_ids",
            "block_ids",
            "branch_ids",
            "position_ids",
            "image_grids",
        ):
            assert torch.equal(getattr(x, name), getattr(y, name)), name


def noisy(count=9):
    """Samples whose images tell them and their shifts apart."""
    made = []
    for n in range(count):
        pixels = rng(n).integers(0, 256, (8, 16, 3), np.uint8)
        image = Image(PIL.Image.fromarray(pixels))
        turns = (
            user(image, "q0" * (n % 3 + 1)),
            assistant("a0"),
            user("q1"),
            assistant("a1"),
            user("q2"),
            assistant("a2"),
        )
        made.append(Sample(turns, f"s{n}", independent=True, meta={"caption": f"caption {n}"}))
    return made


VIEWS = (moved(at_most(chat, 2), 3), lambda s, r: text_to_image(s, r, drop=0.5))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 12), st.integers(0, 5), st.sampled_from([1, 60, 150, 400]))
def test_a_restored_stream_goes_on_bit_for_bit(done, seed, tokens):
    """Saved anywhere, in the middle of an epoch or after several."""
    whole = stream(noisy(), VIEWS, tokens, seed)
    take(whole, done)
    state = whole.state_dict()
    expected = take(whole, 6)
    again = stream(noisy(), VIEWS, tokens, seed)
    again.load_state_dict(state)
    assert_batches_equal(take(again, 6), expected)
    used = stream(noisy(), VIEWS, tokens, seed)
    take(used, 3)  # an object that has already read ahead
    used.load_state_dict(state)
    assert_batches_equal(take(used, 6), expected)


def test_every_sample_passes_every_view_once_an_epoch():
    source = stream(noisy(7), (chat, text_to_image), tokens=1)
    for _ in range(3):
        seen = []
        for batch in take(source, 14):
            (name,) = batch.names
            seen.append((name, bool((batch.branch_ids > 0).any())))
        assert sorted(seen) == sorted((f"s{n}", branched) for n in range(7) for branched in (0, 1))


@pytest.mark.parametrize(("tokens", "lengths"), [(128, {64, 128}), (100, {64, 100}), (1, {15})])
def test_rows_are_filled_up_to_few_lengths(tokens, lengths):
    """Within the budget; the filling is nobody's and teaches nothing."""
    batches = take(stream(noisy(9), (text_to_image,), tokens), 12)
    assert {batch.input_ids.shape[1] for batch in batches} <= lengths
    for batch in batches:
        filling = batch.segment_ids < 0
        assert bool((batch.labels[filling] == IGNORE).all())
        assert batch.tokens == int((~filling).sum())


def test_batches_stay_within_the_budget_and_lose_nothing():
    source = stream(noisy(9), tokens=150)
    names = []
    for batch in take(source, 12):
        assert batch.input_ids.shape[0] == 1
        assert batch.tokens <= 150 or len(batch.names) == 1
        names += batch.names
    whole, rest = divmod(len(names), 9)
    assert whole
    for epoch in range(whole):
        assert len(set(names[9 * epoch : 9 * epoch + 9])) == 9
    assert len(set(names[len(names) - rest :])) == rest


@pytest.mark.parametrize("kind", [SampleStream, KnapsackStream])
@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.sampled_from([60, 150, 400]))
def test_text_and_any_number_of_images_mixed_lose_no_sample(kind, images, tokens):
    """Each sample once an epoch, with all of its images."""
    made = []
    for number, count in enumerate(images):
        image = Image(PIL.Image.new("RGB", (8, 8), (20 * number, 0, 0)))
        shown = user(*[image] * count, "which colour is it?")
        made.append(Sample((shown, assistant("a dark one")), f"s{number}"))
    source = kind(made, [chat], processor(continuous=True), tokens, 0)
    names: list[str] = []
    while len(names) < 2 * len(made):
        batch = next(iter(source))
        assert batch.images == sum(images[int(name[1:])] for name in batch.names)
        names += batch.names
    state = source.state_dict()  # what is chosen and still to come
    places = [place for row in state.get("rows", ()) for place in row]
    places += [(data_shard, place) for data_shard, place, *_ in state.get("waiting", ())]
    names += [made[source.turns.at(*place).index].id for place in places]
    seen = [names.count(sample.id) for sample in made]
    assert max(seen) - min(seen) <= 1


def test_other_seeds_give_other_orders():
    orders = [
        tuple(n for b in take(stream(noisy(9), seed=seed), 5) for n in b.names) for seed in range(3)
    ]
    assert len(set(orders)) == 3


def test_bad_samples_are_counted_and_left_out(tmp_path):
    good = noisy(6)
    bad = [
        Sample((user(Image(tmp_path / "absent.png"), "a"), assistant("b")), "absent"),
        Sample((), "empty"),
    ]
    quarantine = Quarantine(tmp_path / "quarantine.jsonl")
    source = stream([*good, *bad], tokens=1, quarantine=quarantine)
    names = [name for batch in take(source, 18) for name in batch.names]
    assert sorted(names) == sorted(f"s{n}" for n in range(6) for _ in range(3))
    assert set(quarantine.reasons) == {"absent", "empty"}
    assert "no such image" in quarantine.reasons["absent"]
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 2


def test_mostly_bad_data_is_an_error(tmp_path):
    bad = [Sample((), f"empty{n}") for n in range(5)]
    with pytest.raises(DataError, match=r"of 7 samples cannot be used, more than 50%"):
        take(stream([*noisy(2), *bad], tokens=1), 20)


def test_a_view_that_suits_no_sample_is_an_error():
    plain = [
        Sample((user(image(n), "a"), assistant("b")), f"s{n}", meta={"caption": None})
        for n in range(4)
    ]
    with pytest.raises(DataError, match="captions are needed to describe or draw"):
        take(stream(plain, (text_to_image,)), 1)
    with pytest.raises(DataError, match="no samples to train on"):
        stream([])


def test_a_view_that_suits_some_samples_takes_those():
    some = [captioned(n, "red" if n % 2 else None) for n in range(6)]
    names = {
        name for batch in take(stream(some, (text_to_image,), tokens=1), 9) for name in batch.names
    }
    assert names == {"s1", "s3", "s5"}
