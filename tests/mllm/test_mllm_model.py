"""Route A over tiny random language models: our attention, packing, adapters, saving."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from chiasm.core.batch import IGNORE, pack
from chiasm.core.errors import CheckpointError, ConfigError, NotGenerativeError
from chiasm.core.sample import Image, Message, Sample, Text, assistant, user
from chiasm.data.images import ImageStream
from chiasm.data.text import train_bpe
from chiasm.hub import mllm as hub
from chiasm.hub.load import load
from chiasm.mllm import language
from chiasm.mllm.adapter import adapters_of, merge_adapters
from chiasm.mllm.config import (
    AveragePoolConfig,
    CAbstractorConfig,
    DAbstractorConfig,
    IdentityConfig,
    LinearConfig,
    LoRAConfig,
    MLLMConfig,
    MLPConfig,
    PerceiverConfig,
    PixelShuffleConfig,
    QFormerConfig,
    ResidualMLPConfig,
    TokenMergeConfig,
)
from chiasm.mllm.projectors.mlp import MLPProjector
from chiasm.train import checkpoint
from chiasm.train.optim import set_trained
from chiasm.train.stage import Stage
from chiasm.vision.config import ViTConfig
from chiasm.vision.vit import ViT
from kernel_stand_ins import blocks_of, using, varlen

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VISION = ViTConfig(image_size=24, patch_size=4, width=16, layers=1, heads=2, max_patches=12)
LORA = LoRAConfig(rank=2, alpha=4.0)
OTHERS = [
    IdentityConfig(),
    LinearConfig(),
    ResidualMLPConfig(merge=2),
    PixelShuffleConfig(factor=2),
    AveragePoolConfig(),
    PerceiverConfig(latents=3, layers=2, heads=2),
    QFormerConfig(queries=3, layers=2, width=32, heads=2),
    CAbstractorConfig(side=2, blocks=1),
    DAbstractorConfig(side=2, layers=1, heads=2),
    TokenMergeConfig(tokens=3),
]


def tokenizer():
    made = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(["what colour is it? red circle user assistant"] * 4, 290),
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    made.chat_template = CHATML
    return made


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with a tiny random Llama (tied, grouped queries) and a tokenizer for chats."""
    torch.manual_seed(0)
    folder, words = tmp_path_factory.mktemp("llama"), tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            max_position_embeddings=512,
            initializer_range=0.3,
        )
    )
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    torch.manual_seed(0)
    folder, words = tmp_path_factory.mktemp("gpt2"), tokenizer()
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(words),
            n_embd=16,
            n_layer=2,
            n_head=4,
            n_positions=256,
            initializer_range=0.3,
        )
    ).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def build(folder, lora=None, merge=2, projector=None, **settings):
    torch.manual_seed(1)
    projector = projector or MLPConfig(merge=merge)
    config = MLLMConfig(language_model=str(folder), projector=projector, lora=lora, **settings)
    model, processor = hub.build(config, ViT(VISION))
    return model.eval(), processor


def image(width=24, height=24, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image(PIL.Image.fromarray(pixels))


def samples():
    """An image with two turns, plain text, independent questions, two images in one turn."""
    return [
        Sample(
            (
                user(image(20, 24), "what colour?"),
                assistant("red"),
                user("shape?"),
                assistant("a circle"),
            ),
            "turns",
        ),
        Sample((user("is it red?"), assistant("no")), "text"),
        Sample(
            (
                user(image(24, 8, 1), "what?"),
                assistant("blue"),
                user("is it?"),
                assistant("yes"),
            ),
            "branches",
            independent=True,
        ),
        Sample((user(image(8, 8, 2), " or ", image(16, 24, 3), "?"), assistant("it")), "two"),
    ]


def gradients(model):
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_gradients_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_plain_text_equals_transformers_own_attention(family, kernel, request):
    folder = request.getfixturevalue(family)
    ours, processor = build(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=kernel).eval()
    texts = [Sample((user(words), assistant("yes, red"))) for words in ("what is it?", "red")]
    batch = pack([[processor.encode(s)] for s in texts])
    logits = ours.logits(ours(batch))
    for row in range(2):
        real = batch.segment_ids[row] >= 0
        expected = theirs(batch.input_ids[row : row + 1, real]).logits[0]
        torch.testing.assert_close(logits[row, real], expected, atol=1e-5, rtol=1e-4)


@settings(max_examples=6, deadline=None)
@given(st.permutations(range(4)), st.integers(1, 4), st.integers(0, 3))
def test_packed_loss_and_gradients_equal_separate_ones(llama, order, cut, padding):
    model, processor = build(llama)
    encoded = [processor.encode(samples()[i]) for i in order]
    rows = [row for row in (encoded[:cut], encoded[cut:]) if row]
    packed = model.loss(pack(rows, max(sum(map(len, row)) for row in rows) + padding))
    (packed.sum / packed.count).backward()
    together = gradients(model)
    alone = [model.loss(pack([[e]])) for e in encoded]
    total = torch.stack([loss.sum for loss in alone]).sum()
    (total / packed.count).backward()
    torch.testing.assert_close(packed.sum, total, atol=1e-5, rtol=1e-5)
    assert packed.count == sum(loss.count for loss in alone)
    assert any(n.startswith("vision.") for n in together)
    assert any(n.startswith("projector.") for n in together)
    assert_gradients_equal(together, gradients(model))


@pytest.mark.parametrize("function", [None, varlen], ids=["flex", "varlen"])
def test_an_accelerators_kernels_give_the_same_loss_and_gradients(llama, function):
    """Causal text, and images of several sizes in the encoder."""
    model, processor = build(llama)
    batch = pack([[processor.encode(s) for s in samples()]])
    expected = model.loss(batch)
    expected.sum.backward()
    theirs = gradients(model)
    with using(function), blocks_of(4):
        loss = model.loss(batch)
        loss.sum.backward()
    torch.testing.assert_close(loss.sum, expected.sum, atol=1e-5, rtol=1e-5)
    assert_gradients_equal(gradients(model), theirs)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_other_samples_and_their_images_change_nothing(family, request):
    model, processor = build(request.getfixturevalue(family))
    encoded = [processor.encode(s) for s in samples()]
    # GPT-2 adds what MLLM gives as positions to the embeddings: they too must restart.
    before = model(pack([encoded]))
    for which in range(4):
        e = encoded[which]
        ids = np.where(e.input_ids == model.image_token, e.input_ids, (e.input_ids + 5) % 200)
        patches = None if e.image_patches is None else e.image_patches + 1
        changed = list(encoded)
        changed[which] = dataclasses.replace(e, input_ids=ids, image_patches=patches)
        after = model(pack([changed]))
        mine = pack([encoded]).segment_ids == which
        assert torch.equal(before[~mine], after[~mine])
        assert not torch.equal(before[mine], after[mine])


@torch.no_grad()
def test_questions_as_branches_equal_questions_asked_separately(llama):
    model, processor = build(llama)
    together = samples()[2]
    whole = model.loss(pack([[processor.encode(together)]]))
    turns = together.turns
    single = [Sample(turns[:2]), Sample((user(turns[0].content[0], "is it?"), turns[3]))]
    alone = [model.loss(pack([[processor.encode(s)]])) for s in single]
    torch.testing.assert_close(whole.sum, alone[0].sum + alone[1].sum, atol=1e-5, rtol=1e-5)
    assert whole.count == alone[0].count + alone[1].count


def test_the_language_model_alone_refuses(llama):
    model, _ = build(llama)
    with pytest.raises(RuntimeError, match="without a layout; call it through MLLM"):
        model.language(torch.zeros(1, 3, dtype=torch.long))


def test_wrong_placeholder_counts_are_refused(llama):
    model, processor = build(llama)
    batch = pack([[processor.encode(samples()[0])]])
    wrong = batch.input_ids.clone()
    wrong[0, int((wrong[0] == model.image_token).nonzero()[0])] = 5
    count = int((batch.input_ids == model.image_token).sum())
    with pytest.raises(ValueError, match=f"{count - 1} image placeholders but {count} visual"):
        model(dataclasses.replace(batch, input_ids=wrong))
    with pytest.raises(ValueError, match=f"0 image placeholders but {count} visual"):
        model(dataclasses.replace(batch, input_ids=torch.zeros_like(batch.input_ids)))
    with pytest.raises(ValueError, match=f"{count} image placeholders but 0 visual"):
        model(dataclasses.replace(batch, image_patches=None, image_grids=None))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_projector_gives_as_many_tokens_as_it_says(grids, merge):
    projector = MLPProjector(MLPConfig(merge=merge, hidden=7), 6, 5, 0.1)
    features = torch.randn(sum(h * w for h, w in grids), 6)
    tokens = projector(features, torch.tensor(grids))
    assert tokens.shape == (sum(projector.tokens(grid) for grid in grids), 5)
    alone = [
        projector(part, torch.tensor([grid]))
        for part, grid in zip(features.split([h * w for h, w in grids]), grids, strict=True)
    ]
    torch.testing.assert_close(tokens, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_merging_takes_neighbours_in_reading_order_and_pads_with_zeros():
    projector = MLPProjector(MLPConfig(layers=1, merge=2), 1, 4, 0.1)
    with torch.no_grad():
        projector.layers[0].weight.copy_(torch.eye(4))
    features = torch.arange(1.0, 10.0)[:, None]  # a grid of 3 × 3
    expected = [[1, 2, 4, 5], [3, 0, 6, 0], [7, 8, 0, 0], [9, 0, 0, 0]]
    assert projector(features, torch.tensor([[3, 3]])).tolist() == expected


def test_visual_tokens_start_as_large_as_words(llama):
    model, _ = build(llama, merge=2)
    with torch.no_grad():
        words = model.language.get_input_embeddings().weight.square().mean().sqrt()
        tokens = model.projector(torch.randn(400, 16), torch.tensor([[20, 20]]))
    assert 0.5 < (tokens.square().mean().sqrt() / words).item() < 2


def noisy_adapters(model):
    with torch.no_grad():
        for layer in adapters_of(model.language):
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.3)


@torch.no_grad()
def test_fresh_adapters_change_nothing(llama):
    plain, processor = build(llama)
    adapted, _ = build(llama, LORA)
    assert len(adapters_of(adapted.language)) == 2 * 7
    batch = pack([[processor.encode(s) for s in samples()]])
    assert torch.equal(plain(batch), adapted(batch))


@torch.no_grad()
def test_merged_adapters_are_the_same_function(llama):
    model, processor = build(llama, LORA)
    noisy_adapters(model)
    batch = pack([[processor.encode(s) for s in samples()]])
    plain, before = build(llama)[0](batch), model(batch)
    assert (before - plain).abs().max() > 1e-2
    merge_adapters(model.language)
    assert not adapters_of(model.language)
    assert not [n for n, _ in model.named_parameters() if "lora" in n]
    torch.testing.assert_close(model(batch), before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lora", [None, LORA])
def test_groups_are_disjoint_and_complete(llama, lora):
    model, _ = build(llama, lora)
    groups = model.groups()
    assert list(groups) == ["vision", "projector", "language_model"] + ["lora"] * (lora is not None)
    owned = [id(p) for part in groups.values() for p in part.parameters()]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize(
    "names",
    [
        ("projector",),
        ("vision", "projector"),
        ("lora",),
        ("projector", "lora"),
        ("language_model",),
        ("vision", "projector", "language_model", "lora"),
    ],
)
def test_a_stage_trains_exactly_its_groups(llama, names):
    model, processor = build(llama, LORA)
    noisy_adapters(model)  # at B = 0 the gradient of A is zero
    set_trained(model, Stage("s", 1, lr=dict.fromkeys(names, 1.0)))
    model.loss(pack([[processor.encode(s) for s in samples()]])).sum.backward()
    found = {id(p) for p in model.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert found == {id(p) for name in names for p in model.groups()[name].parameters()}
    assert found == {id(p) for p in model.parameters() if p.requires_grad}


def test_batches_without_images_train_and_give_the_encoder_no_gradient(llama):
    model, processor = build(llama)
    set_trained(model, Stage("s", 1, lr={"vision": 1.0, "projector": 1.0, "language_model": 1.0}))
    loss = model.loss(pack([[processor.encode(samples()[1])]]))
    loss.sum.backward()
    assert loss.count > 0
    assert all(p.grad is None for p in (*model.vision.parameters(), *model.projector.parameters()))
    assert all(p.grad is not None for p in model.language.parameters())


def test_only_assistant_words_count(llama):
    model, processor = build(llama)
    encoded = processor.encode(samples()[0])
    assert model.image_token not in encoded.labels
    loss = model.loss(pack([[encoded]]))
    assert loss.count == int((encoded.labels != IGNORE).sum())
    assert loss.numbers()["text"] == (pytest.approx(loss.sum.item()), loss.count)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # GPT-2's Conv1D: peft sets it right itself
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_save_and_load_give_equal_logits(family, request, tmp_path):
    lora = LORA if family == "llama" else LoRAConfig(rank=2, alpha=4.0, targets=("c_attn", "c_fc"))
    model, processor = build(request.getfixturevalue(family), lora)
    noisy_adapters(model)
    batch = pack([[processor.encode(s) for s in samples()]])
    before = model.logits(model(batch))
    config = MLLMConfig(projector=MLPConfig(merge=2), lora=lora)
    hub.save(tmp_path / "run", model, processor, config)
    again, other = load(tmp_path / "run")
    back = pack([[other.encode(s) for s in samples()]])
    assert torch.equal(batch.input_ids, back.input_ids)
    assert torch.equal(batch.labels, back.labels)
    assert not again.training
    after = again.logits(again(back))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)  # merging rounds
    assert torch.equal(after, model.logits(model(batch)))


@pytest.mark.parametrize("projector", OTHERS, ids=lambda config: type(config).__name__)
def test_another_projector_trains_is_saved_and_loaded(llama, projector, tmp_path):
    model, processor = build(llama, projector=projector)
    batch = pack([[processor.encode(s) for s in samples()]])
    set_trained(model, Stage("s", 1, lr={"projector": 1.0}))
    if any(True for _ in model.projector.parameters()):
        model.loss(batch).sum.backward()
    hub.save(tmp_path / "run", model, processor, MLLMConfig(projector=projector, lora=None))
    again, other = load(tmp_path / "run")
    assert again.projector.config == projector
    back = pack([[other.encode(s) for s in samples()]])
    assert torch.equal(batch.input_ids, back.input_ids)
    with torch.no_grad():
        assert torch.equal(again(back), model(batch))


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_tied_language_model_is_checkpointed(llama, lora, tmp_path):
    """Its head is its embedding, and safetensors refuses tensors that share memory."""
    model, processor = build(llama, lora)
    noisy_adapters(model)
    assert model.head.weight is model.language.get_input_embeddings().weight
    batch = pack([[processor.encode(s) for s in samples()]])
    state = checkpoint.copied(checkpoint.state_of(model, model.groups()), keep=True)
    checkpoint.save(tmp_path / "step-1", {"model": state}, {})
    again, _ = build(llama, lora)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(1)
        tensors = checkpoint.read_tensors(tmp_path / "step-1" / "model.safetensors")
        checkpoint.load_state(again, tensors, tmp_path)
        assert torch.equal(again(batch), model(batch))
    assert again.head.weight is again.language.get_input_embeddings().weight


def test_a_saved_language_model_is_a_stock_checkpoint(llama, tmp_path):
    model, processor = build(llama, LORA)
    hub.save(tmp_path / "run", model, processor, MLLMConfig(lora=LORA))
    stock, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "run" / "language", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(stock) is LlamaForCausalLM


@pytest.mark.parametrize(
    "trained",
    [("vision", "projector", "language_model"), ("projector",), ("projector", "lora"), ("vision",)],
)
def test_cost_is_what_torch_counts(llama, trained):
    """Unpadded images and text, a target on every token, through the plain kernel."""
    model, processor = build(llama, LORA if "lora" in trained else None)
    encoded = processor.encode(samples()[0])
    batch = pack([[dataclasses.replace(encoded, labels=np.full(len(encoded), 5))]])
    set_trained(model, Stage("s", 1, lr=dict.fromkeys(trained, 1.0)))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(batch).sum.backward()
    cost = model.cost(batch)
    assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert (cost.tokens, cost.images) == (len(encoded), 1)


@pytest.mark.parametrize("projector", OTHERS, ids=lambda config: type(config).__name__)
def test_cost_with_another_projector_is_what_torch_counts(llama, projector):
    model, processor = build(llama, projector=projector)
    encoded = processor.encode(samples()[0])
    batch = pack([[dataclasses.replace(encoded, labels=np.full(len(encoded), 5))]])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(batch).sum.backward()
    assert model.cost(batch).flops == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize(
    ("frozen", "trained"), [(1, ("language_model",)), (1, ("projector", "language_model"))]
)
def test_cost_with_frozen_layers_is_what_torch_counts(llama, frozen, trained):
    model, processor = build(llama, freeze_first_layers=frozen)
    encoded = processor.encode(samples()[0])
    batch = pack([[dataclasses.replace(encoded, labels=np.full(len(encoded), 5))]])
    set_trained(model, Stage("s", 1, lr=dict.fromkeys(trained, 1.0)))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(batch).sum.backward()
    assert model.cost(batch).flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_cost_of_the_alignment_is_what_torch_counts(llama):
    """But for the words' own matrix, which is as small as captions are short."""
    model, processor = build(llama)
    said = [Sample((user(image(24, 24, n)),), f"s{n}", meta={"caption": "r"}) for n in (0, 1)]
    batch = next(iter(ImageStream(said, hub.word_processor(model, processor), 2, seed=0)))
    set_trained(model, Stage("s", 1, lr={"vision": 1.0, "projector": 1.0}))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(batch).sum.backward()
    assert model.cost(batch).flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_frozen_layers_stay_and_the_rest_learns(llama):
    model, processor = build(llama, freeze_first_layers=1)
    set_trained(model, Stage("s", 1, lr={"language_model": 1.0}))
    model.loss(pack([[processor.encode(samples()[0])]])).sum.backward()
    moved = {name for name, p in model.language.named_parameters() if p.grad is not None}
    held = {name for name, p in model.language.named_parameters() if p.grad is None}
    assert {name for name in held if "layers.0." not in name} == {"model.embed_tokens.weight"}
    assert all("layers.1." in name or name == "model.norm.weight" for name in moved)
    with pytest.raises(ConfigError, match=r"freeze_first_layers: 3, but .* 2 layers"):
        build(llama, freeze_first_layers=3)


def test_alignment_brings_images_to_their_words(llama):
    """The loss of images with captions reaches projector and encoder, not the language model,
    and following it makes each visual token's nearest word its own."""
    model, processor = build(llama, merge=6)  # one visual token an image
    images = [image(24, 24, seed) for seed in range(2)]
    captions = ["r", "c"]
    said = [
        Sample((user(p),), f"s{n}", meta={"caption": c})
        for n, (p, c) in enumerate(zip(images, captions, strict=True))
    ]
    words = hub.word_processor(model, processor)
    batch = next(iter(ImageStream(said, words, 2, seed=0)))
    set_trained(model, Stage("s", 1, lr={"vision": 1.0, "projector": 1.0}))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(60):
        loss = model.loss(batch)
        assert loss.count == 2
        optimizer.zero_grad()
        loss.sum.backward()
        optimizer.step()
    assert all(p.grad is None for p in model.language.parameters())
    table = torch.nn.functional.normalize(model.language.get_input_embeddings().weight, dim=-1)
    patches, grids = words.images([p.load() for p in images])
    nearest = (torch.nn.functional.normalize(model.see(patches, grids), dim=-1) @ table.T).argmax(1)
    assert nearest.tolist() == words.texts(captions)[0][:, 0].tolist()
    assert model.cost(batch).flops > 0


def test_the_system_speaks_only_where_nobody_else_does(llama):
    _, processor = build(llama, system="be brief")
    plain = processor.template.decode(processor.encode(samples()[1]).input_ids)
    assert "be brief" in plain
    own = Sample((Message("system", (Text("be long"),)), *samples()[1].turns), "own")
    assert "be brief" not in processor.template.decode(processor.encode(own).input_ids)
    _, bare = build(llama)
    assert "be brief" not in bare.template.decode(bare.encode(samples()[1]).input_ids)


def test_a_folder_without_a_model_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="no language model that transformers can load") as e:
        language.load_language(str(tmp_path))
    assert "\n" not in str(e.value)
    with pytest.raises(CheckpointError, match="no such file"):
        language.load_language(str(tmp_path / "absent.gguf"))


def test_the_codec_cannot_draw(llama):
    _, processor = build(llama)
    with pytest.raises(NotGenerativeError, match="cannot draw"):
        processor.codec.decode(torch.zeros(4, dtype=torch.long))


def test_slots_are_placeholders_and_patches(llama):
    model, processor = build(llama)
    small, wide = processor.codec.encode([image(24, 24).load(), image(48, 12).load()])
    for slot in (small, wide):
        assert slot.grid[0] * slot.grid[1] == len(slot.image_patches) <= VISION.max_patches
        assert len(slot.input_ids) == model.projector.tokens(slot.grid)
        assert (slot.input_ids == model.image_token).all()
    assert small.grid != wide.grid
