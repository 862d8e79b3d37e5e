"""Zero-shot classification and retrieval, labels by likelihood, perplexity, drawn prompts."""

import json
import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, SiglipConfig, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from chiasm import cli
from chiasm.core.batch import pack
from chiasm.core.errors import CheckpointError, DataError, NotGenerativeError
from chiasm.core.progress import silent
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.formats.messages import write_messages
from chiasm.data.text import train_bpe
from chiasm.eval.perplexity import modality_perplexity
from chiasm.eval.prompts import draw_prompts, mean_clip_score, rules_apply, score_by_rules
from chiasm.eval.task import QuestionTask
from chiasm.eval.zero_shot import class_vectors, classify, retrieval, zero_shot_accuracy
from chiasm.generation.generator import Generator
from chiasm.generation.likelihood import (
    LabelResponder,
    label_log_likelihood,
    reply_log_likelihood,
)
from chiasm.hub import contrastive, unified
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig, FSQConfig, UnifiedConfig
from chiasm.vision.config import ContrastiveConfig, ViTConfig
from chiasm.vision.contrastive import DualEncoder, zero_shot_weights
from chiasm.vision.dual import OwnDual, load_stock_dual

DATA = Path("/work/shared/data")
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def plain(color) -> Image:
    return Image(PIL.Image.new("RGB", (16, 16), color))


def words():
    text = "what colour is it? a photo of red green blue user assistant cat dog ship truck"
    return train_bpe([text] * 4, 290)


class ColorDual:
    """Images and the names of their colours as the same vector."""

    def embed_images(self, images):
        rows = [np.asarray(p, np.float32).mean((0, 1)) for p in images]
        return F.normalize(torch.tensor(np.array(rows)), dim=-1)

    def embed_texts(self, texts):
        rows = [np.sum([COLORS.get(w, (0, 0, 0)) for w in t.split()], 0) for t in texts]
        return F.normalize(torch.tensor(np.array(rows, np.float32)), dim=-1)


def colored(names):
    return [
        Sample((user(plain(COLORS[n]), "which?"),), f"{n}{i}", meta={"reference": n})
        for i, n in enumerate(names)
    ]


def test_zero_shot_of_a_dual_that_knows():
    samples = colored(["red", "red", "blue"])
    found = zero_shot_accuracy(ColorDual(), samples, list(COLORS), ("a {}", "{}"), silent)
    assert found == {"top-1": 1, "top-5": 1, "per-class": 1}
    wrong = colored(["red", "red", "blue"])
    wrong[2] = wrong[2].replace(meta={"reference": "green"})
    found = zero_shot_accuracy(ColorDual(), wrong, list(COLORS), ("{}",), silent)
    assert found["top-1"] == pytest.approx(2 / 3)
    assert found["per-class"] == 0.5
    with pytest.raises(DataError, match="'red' is none of the 1 classes"):
        zero_shot_accuracy(ColorDual(), samples, ["blue"], ("{}",), silent)
    with pytest.raises(DataError, match=r"write \{\} where"):
        class_vectors(ColorDual(), ["red"], ("a photo",))


def test_retrieval_of_a_dual_that_knows():
    samples = [
        s.replace(meta={**s.meta, "captions": [s.meta["reference"], f"a {s.meta['reference']}"]})
        for s in colored(list(COLORS))
    ]
    found = retrieval(ColorDual(), samples, (1, 2), silent)
    # The two captions of an image are the same vector, and both are right.
    assert found == {
        f"{way} R@{k}": 1 for way in ("image to text", "text to image") for k in (1, 2)
    }
    samples[0] = samples[0].replace(meta={"captions": ["blue"], "reference": "blue"})
    found = retrieval(ColorDual(), samples, (1,), silent)
    assert found["image to text R@1"] == pytest.approx(2 / 3)


def own_dual():
    torch.manual_seed(0)
    config = ContrastiveConfig(
        vision=ViTConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2),
        embedding=8, text_width=16, text_layers=1, vocabulary=290, context=8,
    )  # fmt: skip
    return DualEncoder(config).eval(), contrastive.image_processor(config, words())


def test_our_encoder_agrees_with_its_own_zero_shot_weights():
    model, processor = own_dual()
    dual, classes, prompts = OwnDual(model, processor), ["cat", "dog"], ("a photo of {}", "{}")
    pairs = []
    for name in classes:
        ids = [processor.texts([prompt.replace("{}", name)]) for prompt in prompts]
        pairs.append([(i[0], length[0]) for i, length in ids])
    expected = zero_shot_weights(model, pairs)
    torch.testing.assert_close(class_vectors(dual, classes, prompts), expected)
    scores = classify(dual, colored(list(COLORS)), classes, prompts, silent)
    images = model.embed_images(*processor.images([plain(c).load() for c in COLORS.values()]))
    np.testing.assert_allclose(scores, (images @ expected.T).detach().numpy(), atol=1e-6)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def stock(request, tmp_path_factory):
    """A tiny random CLIP or SigLIP on disk: (folder, stock model, image processor, tokenizer)."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower |= {"intermediate_size": 24}
    text = {**tower, "vocab_size": 290, "max_position_embeddings": 12}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "projection_size": 16}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    side = {"height": 16, "width": 16}
    if request.param == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=side)
    else:
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        images = SiglipImageProcessorPil(size=side)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words(), pad_token="<pad>")
    for part in (model, images, tokenizer):
        part.save_pretrained(folder)
    return folder, model.eval(), images, tokenizer


@torch.no_grad()
def test_stock_models_embed_as_their_own_forward(stock):
    folder, model, processor, tokenizer = stock
    dual = load_stock_dual(str(folder))
    images = [PIL.Image.new("RGB", (20, 31), c) for c in COLORS.values()]
    texts = ["a photo of red", "dog"]
    padding = True if model.config.model_type == "clip" else "max_length"
    inputs = tokenizer(texts, padding=padding, max_length=12, truncation=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    if model.config.model_type != "clip":
        inputs.pop("attention_mask")
    out = model(
        **inputs, pixel_values=processor(images=images, return_tensors="pt")["pixel_values"]
    )
    torch.testing.assert_close(dual.embed_images(images), out.image_embeds)
    torch.testing.assert_close(dual.embed_texts(texts), out.text_embeds)
    assert dual.embed_images(images).norm(dim=-1) == pytest.approx(1)


def test_folders_that_are_no_contrastive_model(tmp_path, stock):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="a 'bert', expected one with a text tower"):
        load_stock_dual(str(tmp_path))
    with pytest.raises(CheckpointError, match="no contrastive model"):
        load_stock_dual(str(tmp_path / "nowhere"))


@pytest.fixture(scope="module")
def talker():
    """A random unified model as a Generator."""
    tokens = AutoencoderConfig(
        quantizer=FSQConfig((4, 3)), image_size=8, base_channels=32, multipliers=(1, 1, 1),
        decoder_channels=64, decoder_blocks=1,
    )  # fmt: skip
    shape = UnifiedConfig(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48)
    torch.manual_seed(2)
    model, processor = unified.build(shape, words(), Autoencoder(tokens))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Generator(model.eval(), processor)


def ask(color: str, text: str = "what colour is it?") -> Sample:
    return Sample((user(plain(COLORS[color]), text),), color, meta={"reference": color})


LABELS = ["red", "green", "a photo of blue", "cat"]


@pytest.mark.parametrize("labels", [LABELS, LABELS[:1]])
def test_labels_in_branches_are_as_likely_as_alone(talker, labels):
    samples = [ask("red"), ask("blue", "what is it?")]
    found = label_log_likelihood(talker, samples, [labels, labels])
    for sample, row in zip(samples, found, strict=True):
        alone = [sample.replace(turns=(*sample.turns, assistant(label))) for label in labels]
        assert row == pytest.approx(reply_log_likelihood(talker, alone), abs=1e-4)


def test_more_labels_than_one_trunk_holds(talker, monkeypatch):
    monkeypatch.setattr("chiasm.generation.likelihood.AT_ONCE", 3)
    (few,) = label_log_likelihood(talker, [ask("red")], [LABELS])
    monkeypatch.setattr("chiasm.generation.likelihood.AT_ONCE", 64)
    (all_at_once,) = label_log_likelihood(talker, [ask("red")], [LABELS])
    assert few == pytest.approx(all_at_once, abs=1e-4)


def test_only_the_last_reply_counts_after_a_dialogue(talker):
    before = (*ask("red").turns, assistant("cat"), user("what is it?"))
    (found,) = label_log_likelihood(talker, [Sample(before, "d")], [["dog", "ship"]])
    whole = [
        reply_log_likelihood(talker, [Sample((*before, assistant(label)))])[0]
        for label in ("dog", "ship")
    ]
    first = reply_log_likelihood(talker, [Sample(before[:2])])[0]
    assert found == pytest.approx([value - first for value in whole], abs=1e-4)


def test_the_likeliest_label_is_said(talker):
    samples = [ask("red"), ask("green"), ask("blue")]
    respond = LabelResponder(talker, lambda sample: LABELS)
    said = {i: piece.text for i, piece in respond(samples, SamplingParams())}
    for i, row in enumerate(label_log_likelihood(talker, samples, [LABELS] * 3)):
        assert said[i] == LABELS[int(np.argmax(row))]
    with pytest.raises(DataError, match="'red': no labels"):
        list(LabelResponder(talker, lambda sample: [])(samples, SamplingParams()))


def test_labels_are_told_sample_by_sample(talker, monkeypatch):
    monkeypatch.setattr(talker, "tokens", 1)
    ran = []
    monkeypatch.setattr(
        "chiasm.generation.likelihood.pack", lambda rows: ran.append(rows) or pack(rows)
    )
    respond = LabelResponder(talker, lambda sample: LABELS)
    told = respond([ask("red"), ask("green"), ask("blue")], SamplingParams())
    for done in (1, 2, 3):
        next(told)
        assert len(ran) == done


def test_perplexity_is_the_exponent_of_the_likelihood(talker):
    samples = [
        Sample((*ask(c).turns, assistant(reply)), c)
        for c, reply in (("red", "a photo"), ("blue", "cat"))
    ]
    total = -sum(reply_log_likelihood(talker, samples))
    count = sum(int((pack([[talker.processor.encode(s)]]).labels >= 0).sum()) for s in samples)
    found = modality_perplexity(talker, samples, silent)
    assert found == {"text": pytest.approx(math.exp(total / count), rel=1e-4)}
    drawn = [Sample((user("red"), assistant(plain("red"))), "x")]
    assert set(modality_perplexity(talker, drawn, silent)) == {"text", "image"}


def prompt(text: str, shape: str, color: str) -> Sample:
    include = [{"class": shape, "count": 1, "color": color}]
    return Sample((user(text),), text, meta={"include": include, "category": "colors"})


def test_prompts_are_drawn_into_genevals_folders_and_scored(talker, tmp_path):
    samples = [prompt("a red circle", "circle", "red"), prompt("a photo", "triangle", "blue")]
    images = draw_prompts(talker, samples, tmp_path, 2, SamplingParams(temperature=1.0), silent)
    assert [len(p) for p in images] == [2, 2]
    record = json.loads((tmp_path / "00001/metadata.jsonl").read_text())
    assert record == {"tag": "colors", "include": samples[1].meta["include"], "prompt": "a photo"}
    assert PIL.Image.open(tmp_path / "00001/samples/0001.png").size == (8, 8)
    assert rules_apply(samples)
    assert not rules_apply([prompt("a dog", "dog", "red")])
    square = PIL.Image.new("RGB", (64, 64), "white")
    square.paste((255, 0, 0), (10, 10, 30, 40))
    asked = [prompt("r", "rectangle", "red"), prompt("c", "circle", "red")]
    assert score_by_rules(asked, [[square], [square]]) == {"all": 0.5, "colors": 0.5}
    red = [[PIL.Image.new("RGB", (8, 8), "red")]]
    assert mean_clip_score(ColorDual(), [prompt("red", "circle", "red")], red) == pytest.approx(2.5)


def saved(tmp_path, talker) -> Path:
    unified.save(tmp_path / "talker", talker.model, talker.processor)
    return tmp_path / "talker"


def runs(*arguments) -> None:
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        if stop.code:
            pytest.fail(f"exit code {stop.code}")


def test_the_command_on_every_kind_of_run(tmp_path, talker, capsys):
    run = saved(tmp_path, talker)
    samples = [Sample((*ask(c).turns, assistant(c)), c, meta={"category": c}) for c in COLORS]
    write_messages(samples, tmp_path / "set" / "test.jsonl")
    file = tmp_path / "set" / "test.jsonl"
    runs("eval", run, "--task", file, "--by-likelihood")
    lines = [json.loads(x) for x in (run / "predictions-test.jsonl").read_text().splitlines()]
    assert {line["reply"] for line in lines} <= set(COLORS)
    runs("eval", run, "--task", file, "--metric", "anls", "--match-harness", "lmms-eval")
    assert "ANLS (lmms-eval" in " ".join(capsys.readouterr().out.split())
    runs("eval", run, "--task", file, "--metric", "perplexity")
    assert "text" in capsys.readouterr().out
    rows = [{"q": "what?", "gold": c} for c in COLORS]
    table = tmp_path / "t.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    runs("eval", run, "--task", table, "--columns", "question=q answer=gold", "--metric", "relaxed")
    assert "relaxed accuracy" in capsys.readouterr().out
    contrastive.save(tmp_path / "encoder", *own_dual())
    out = tmp_path / "scores.json"
    runs("eval", tmp_path / "encoder", "--task", file, "--prompts", "{}", "--out", out)
    assert json.loads(out.read_text())["n"] == 3
    record = {"tag": "colors", "include": [{"class": "circle", "count": 1}], "prompt": "a red"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(record))
    runs("eval", run, "--task", "geneval", "--data", tmp_path, "--num-images", 1, "--out",
         tmp_path / "drawn", "--clip-model", tmp_path / "encoder")  # fmt: skip
    assert (tmp_path / "drawn/00000/samples/0000.png").exists()
    assert "CLIPScore (encoder)" in capsys.readouterr().out


def test_a_misspelt_benchmark_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["eval", str(tmp_path), "--task", "text-vqa"])
    assert "did you mean 'textvqa'" in capsys.readouterr().err


@pytest.mark.skipif(not (DATA / "cifar10-zeroshot").is_dir(), reason="shared data not here")
def test_zero_shot_on_cifar10_with_a_toy_encoder(tmp_path, capsys):
    contrastive.save(tmp_path / "encoder", *own_dual())
    out = tmp_path / "scores.json"
    runs(
        "eval",
        tmp_path / "encoder",
        "--task",
        DATA / "cifar10-zeroshot",
        "--limit",
        100,
        "--out",
        out,
    )
    found = json.loads(out.read_text())
    assert found["n"] == 100
    assert 0 <= found["top-1"] < found["top-5"] <= 1
    assert "10 classes" in capsys.readouterr().out


@pytest.mark.skipif(not (DATA / "tables-qa").is_dir(), reason="shared data not here")
def test_labels_by_likelihood_on_tables_qa_with_a_toy_model(tmp_path, talker):
    run = saved(tmp_path, talker)
    runs("eval", run, "--task", DATA / "tables-qa", "--limit", 8, "--by-likelihood")
    lines = (run / "predictions-tables-qa.jsonl").read_text().splitlines()
    assert len(lines) == 8
    assert all(json.loads(line)["reply"] for line in lines)


def test_a_model_that_cannot_draw_says_so(tmp_path):
    def reader(samples, *_):
        raise NotGenerativeError("this model reads images but cannot draw them")
        yield

    with pytest.raises(NotGenerativeError):
        draw_prompts(reader, [prompt("x", "circle", "red")], tmp_path, 1, SamplingParams(), silent)


def test_labels_come_from_a_file_beside_the_data(tmp_path):
    from chiasm.recipes.eval_task import Asked

    samples = [Sample((*ask(c).turns, assistant(c)), c) for c in ("red", "blue")]
    write_messages(samples, tmp_path / "test.jsonl")
    asked = Asked(str(tmp_path))
    task = QuestionTask("t", samples)
    assert asked.labels(task) == ["blue", "red"]
    (tmp_path / "classes.txt").write_text("red\nblue\ngreen\n")
    assert asked.labels(task) == ["red", "blue", "green"]
    (tmp_path / "mine.txt").write_text("\n")
    with pytest.raises(DataError, match="no labels"):
        asked.labels(task, tmp_path / "mine.txt")
