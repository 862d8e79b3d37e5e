"""New tokens are learnt where the tables that hold them are frozen, and are saved."""

from dataclasses import replace

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM

from chiasm import cli
from chiasm.core.batch import pack
from chiasm.core.errors import CheckpointError
from chiasm.core.sample import Sample, assistant, user
from chiasm.hub import mllm as hub
from chiasm.hub.load import load
from chiasm.mllm.config import LoRAConfig, SplitConfig
from chiasm.train.optim import make_optimizer, set_trained
from chiasm.train.stage import Stage

LORA = LoRAConfig(rank=2)
NAMES = ("<box>", "</box>")
SAMPLES = [Sample((user("what?"), assistant("<box></box>")), "s")]


@pytest.fixture(scope="module")
def families(toy, tmp_path_factory):
    """toy with an untied Llama and with Gemma, whose embedding is scaled."""
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    known = load_words(toy.folders["llama"])
    torch.manual_seed(0)
    made = {
        "untied": LlamaForCausalLM(
            LlamaConfig(vocab_size=len(known), tie_word_embeddings=False, **shape)
        ),
        "gemma": GemmaForCausalLM(GemmaConfig(vocab_size=len(known), head_dim=4, **shape)),
    }
    for name, model in made.items():
        toy.folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(toy.folders[name])
        known.save_pretrained(toy.folders[name])
    return toy


def load_words(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def train(model, processor, group, steps=40):
    stage = Stage("s", steps, lr={group: 0.05}, weight_decay=0.0)
    set_trained(model, stage)
    optimizer = make_optimizer(model, stage)
    batch = pack([[processor.encode(s) for s in SAMPLES]])
    for _ in range(steps):
        loss = model.loss(batch)
        optimizer.zero_grad()
        (loss.sum / loss.count).backward()
        optimizer.step()


def missed(model, processor):
    """Mean loss where a new token is the target."""
    batch = pack([[processor.encode(s) for s in SAMPLES]])
    wanted = processor.template.tokenizer.convert_tokens_to_ids(list(NAMES))
    place = torch.isin(batch.labels, torch.tensor(wanted))
    assert place.sum() == 2
    with torch.no_grad():
        likely = model.logits(model(batch)).log_softmax(-1)
    return -likely[place].gather(1, batch.labels[place][:, None]).mean().item()


WAYS = {
    "frozen layers": ({"freeze_first_layers": 3}, "language_model"),
    "lora": ({"lora": LORA}, "lora"),
}


@pytest.mark.parametrize("family", ["llama", "untied", "gemma"])
@pytest.mark.parametrize("way", WAYS)
def test_new_tokens_are_learnt_and_nothing_else_of_the_tables(families, way, family):
    settings, group = WAYS[way]
    model, processor = families.build(family, extra_special_tokens=NAMES, **settings)
    ids = processor.template.tokenizer.convert_tokens_to_ids(list(NAMES))
    tables = [model.language.get_input_embeddings().weight, model.head.weight]
    before = [table.detach().clone() for table in tables]
    first = missed(model, processor)
    train(model, processor, group)
    assert missed(model, processor) < 0.4 * first
    trained = family == "untied" and way == "frozen layers"  # its head is no part of the layers
    for table, old in list(zip(tables, before, strict=True))[: 1 if trained else 2]:
        assert torch.equal(table, old)
    assert (model.rows.head is not None) is (family == "untied" and way == "lora")
    batch = pack([[processor.encode(s) for s in SAMPLES]])
    with torch.no_grad():
        expected = model.logits(model(batch))
        hub.merge_in(model)
        torch.testing.assert_close(model.logits(model(batch)), expected, atol=1e-4, rtol=1e-4)
    rest = [i for i in range(len(before[0])) if i not in ids]
    for table, old in list(zip(tables, before, strict=True))[: 1 if trained else 2]:
        assert torch.equal(table[rest], old[rest])
        assert (table[ids] - old[ids]).abs().amin(1).min() > 0


def test_without_frozen_tables_they_are_trained_as_all_rows_are(toy):
    model, _ = toy.build(extra_special_tokens=NAMES)
    assert model.rows is None
    assert set(model.groups()) == {"vision", "projector", "language_model"}
    plain, _ = toy.build(lora=LORA)
    assert plain.rows is None


def test_words_between_tiles_are_learnt_too(toy):
    images = SplitConfig(longest_edge=48, max_image_size=24)
    model, processor = toy.build(image_processing=images, freeze_first_layers=1)
    words = processor.template.tokenizer
    assert "<row_1_col_1>" in words.convert_ids_to_tokens(model.rows.ids.tolist())


@pytest.mark.parametrize("apart", [False, True])
def test_saved_with_the_adapters(families, apart, tmp_path, capsys):
    lora = replace(LORA, merged=not apart)
    model, processor = families.build("untied", extra_special_tokens=NAMES, lora=lora)
    train(model, processor, "lora", 5)
    batch = pack([[processor.encode(s) for s in SAMPLES]])
    with torch.no_grad():
        expected = model.logits(model(batch))
    config = families.config("untied", extra_special_tokens=NAMES, lora=lora)
    hub.save(tmp_path / "run", model, processor, config)
    with torch.no_grad():
        found, again = load(tmp_path / "run")
        assert (
            again.encode(SAMPLES[0]).input_ids.tolist()
            == processor.encode(SAMPLES[0]).input_ids.tolist()
        )
        torch.testing.assert_close(found.logits(found(batch)), expected, atol=1e-4, rtol=1e-4)
        if not apart:
            return
        cli.main(["merge-lora", str(tmp_path / "run"), str(tmp_path / "merged")])
        merged, _ = load(tmp_path / "merged")
        assert merged.rows is None
        torch.testing.assert_close(merged.logits(merged(batch)), expected, atol=1e-4, rtol=1e-4)
    (tmp_path / "run" / "adapter" / hub.ROWS).unlink()
    with pytest.raises(
        CheckpointError, match=r"model\.extra_special_tokens \(<box>, </box>\) is missing"
    ):
        load(tmp_path / "run")


def test_gradients_reach_new_tokens_below_frozen_layers_and_are_counted(toy):
    """cost: a frozen layer above a trained row costs two passes, not one."""
    with_rows, processor = toy.build(extra_special_tokens=NAMES, freeze_first_layers=2)
    without, _ = toy.build(freeze_first_layers=2)
    batch = pack([[processor.encode(s) for s in SAMPLES]])
    stage = Stage("s", 1, lr={"language_model": 0.1})
    for model in (with_rows, without):
        set_trained(model, stage)
    assert (
        with_rows.cost(batch).parts["language_model"]
        > 1.2 * without.cost(batch).parts["language_model"]
    )
