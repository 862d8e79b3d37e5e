"""Tokenizers of transformers give the ids that the tokenizers library gives for the same file."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from chiasm.core.hf_tokenizer import load_hf_tokenizer, split_as_stated
from chiasm.hub.generic import _read_processor
from chiasm.mllm.language import load_tokenizer

TEXTS = ["items:\n\n1. one\n\n2. two", "   345 cats", "<|im_start|>12<|im_end|>"]


def _trained(*before):
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([*before, byte_level]) if before else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    lines = ["items:\n\n1. one\n\n2. two  12 dogs and   345 cats\n"] * 40
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def _folder(path, tokenizer, named, model_type):
    tokenizer.save(str(path / "tokenizer.json"))
    stated = {"tokenizer_class": named, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(stated))
    (path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    return path


@pytest.mark.parametrize("model_type", ["llama", "idefics3", "smolvlm", "qwen2", "internvl"])
@pytest.mark.parametrize(
    "named", ["GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast"]
)
def test_text_is_split_as_the_file_says_whatever_class_it_names(tmp_path, named, model_type):
    trained = _trained(pre_tokenizers.Digits(individual_digits=True))
    folder = _folder(tmp_path, trained, named, model_type)
    for loaded in (load_hf_tokenizer(folder), load_tokenizer(str(folder))):
        assert [loaded(text)["input_ids"] for text in TEXTS] == [
            trained.encode(text).ids for text in TEXTS
        ]
        assert (loaded.bos_token, loaded.eos_token) == ("<|im_start|>", "<|im_end|>")
        assert loaded.chat_template


def test_a_folder_saved_again_is_read_alike(tmp_path):
    trained = _trained(pre_tokenizers.Digits(individual_digits=True))
    first = load_hf_tokenizer(_folder(tmp_path, trained, "GPT2Tokenizer", "idefics3"))
    first.save_pretrained(tmp_path / "again")
    second = load_hf_tokenizer(tmp_path / "again")
    assert second(TEXTS)["input_ids"] == first(TEXTS)["input_ids"]


def test_a_class_that_splits_as_the_file_does_is_kept(tmp_path):
    loaded = load_hf_tokenizer(_folder(tmp_path, _trained(), "GPT2Tokenizer", "llama"))
    assert type(loaded).__name__.startswith("GPT2Tokenizer")


def test_the_tokenizer_within_a_processor_is_split_as_its_file_says(tmp_path):
    trained = _trained(pre_tokenizers.Digits(individual_digits=True))
    folder = _folder(tmp_path, trained, "GPT2Tokenizer", "idefics3")
    images = {"image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 28}}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "Idefics3Processor", "image_seq_len": 4})
    )
    processor = _read_processor(folder, "idefics3")
    assert processor.tokenizer(TEXTS)["input_ids"] == [trained.encode(text).ids for text in TEXTS]
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert processor.tokenizer("<image>")["input_ids"] == [image]  # added by the processor


def test_a_tokenizer_is_split_in_place_and_keeps_added_tokens(tmp_path):
    trained = _trained(pre_tokenizers.Digits(individual_digits=True))
    folder = _folder(tmp_path, trained, "GPT2Tokenizer", "llama")
    loaded = AutoTokenizer.from_pretrained(folder)
    loaded.add_special_tokens({"additional_special_tokens": ["<box>"]})
    assert loaded(TEXTS[0])["input_ids"] != trained.encode(TEXTS[0]).ids
    split_as_stated(loaded, folder)
    ids = loaded("12<box>")["input_ids"]
    assert ids == [*trained.encode("12").ids, loaded.convert_tokens_to_ids("<box>")]
