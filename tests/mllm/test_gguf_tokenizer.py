"""Pre-tokenizers named by GGUF: against llama.cpp, and against the models' own tokenizers."""

import json
import re
import unicodedata
import urllib.request
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.cohere.tokenization_cohere import CohereTokenizer
from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer
from transformers.models.llama.tokenization_llama import LlamaTokenizer
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from chiasm.core.errors import CheckpointError
from chiasm.mllm import gguf as conversion
from chiasm.mllm.gguf_tokenizer import FIELDS, PRE_TOKENIZERS, adds_space, follow, name_of
from chiasm.mllm.language import load_language

gguf = pytest.importorskip("gguf")

TEXTS = [
    "1. a red circle\n\n2. two  squares\n",
    "\n\n1.",
    "  12",
    "x = 1200; y = [3, 45]\n\tprint(x)  # ok!",
    "It's John's; we'LL SEE. HelloWorld fooBar",
    "| a | 12 |\n|---|---|\n\n",
    "日本語 12円, 中文2026年 ½ ٣٤٥ e\u0301te\u0301 été",
    "...?! <b>$5</b> 'tis   \r\n\r\n  end  ",
]


@pytest.fixture(scope="module")
def words():
    """Byte-level BPE whose merges cross every border a split could set."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    # Every text alone would be one token in the end: twice each in several orders.
    tokenizer.train_from_iterator([t[i:] + t[:i] for t in TEXTS for i in range(9)] * 2, trainer)
    # A word that no merge leads to.
    told = json.loads(tokenizer.to_str())
    told["model"]["vocab"]["circle"] = len(told["model"]["vocab"])
    return Tokenizer.from_str(json.dumps(told))


def split_as(words, name):
    tokenizer = Tokenizer.from_str(words.to_str())
    follow(tokenizer, dict(zip(FIELDS, ("gpt2", name), strict=False)), "model.gguf")
    return tokenizer


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def write(file, words, pre):
    """A GGUF of a tiny Llama with random weights and this vocabulary."""
    told = json.loads(words.to_str())["model"]
    size = len(told["vocab"])
    config = {"vocab_size": size, "hidden_size": 32, "intermediate_size": 32}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    state = LlamaForCausalLM(LlamaConfig(**config)).state_dict()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, value in state.items():
        place = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(place, value.numpy())
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    order = sorted(told["vocab"], key=told["vocab"].get)
    writer.add_token_list(order)
    writer.add_token_types([3 if word.startswith("<|im") else 1 for word in order])
    writer.add_token_merges([" ".join(merge) for merge in told["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp_ids(file, texts):
    """What llama.cpp makes of texts, words that look like its control tokens being words."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.warmup, params.n_parallel, params.fit_params = 64, False, 1, False
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    found = []
    for text in texts:
        body = {"content": text, "add_special": False, "parse_special": False}
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        found.append(json.load(urllib.request.urlopen(request))["tokens"])
    return found


@pytest.mark.parametrize("name", [*PRE_TOKENIZERS, None])
def test_words_are_split_as_llama_cpp_splits_them(words, name, tmp_path):
    pytest.importorskip("xllamacpp")
    write(tmp_path / "model.gguf", words, name)
    tokenizer = split_as(words, name or "default")
    # Composed, since llama.cpp neither normalises nor knows marks in some of its expressions.
    texts = [unicodedata.normalize("NFC", text) for text in TEXTS]
    theirs = llama_cpp_ids(tmp_path / "model.gguf", texts)
    assert [ids(tokenizer, text) for text in texts] == theirs
    assert sum(map(len, theirs)) < sum(len(t.encode()) for t in texts)  # merges were made


@pytest.mark.parametrize(
    ("name", "kind"),
    [("gpt-2", GPT2Tokenizer), ("qwen2", Qwen2Tokenizer), ("command-r", CohereTokenizer)],
)
def test_words_are_split_as_the_models_own_tokenizer_splits_them(words, name, kind):
    told = json.loads(words.to_str())["model"]
    merges = [tuple(merge) for merge in told["merges"]]
    theirs = kind(vocab=told["vocab"], merges=merges).backend_tokenizer
    ours = split_as(words, name)

    @settings(max_examples=200, deadline=None)
    @given(st.text("ab Z1²٣'slT.!-\n\r\té\u0301日", max_size=24))
    def same(text):
        assert ids(ours, text) == ids(theirs, text)

    same()
    for text in TEXTS:
        same.hypothesis.inner_test(text)


def test_digits_of_smollm_are_words_of_their_own(words):
    """What a model with tokenizer.ggml.pre = smollm was trained on: Digits, then ByteLevel."""
    theirs = Tokenizer.from_str(words.to_str())
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    ours = split_as(words, "smollm")
    for text in TEXTS:
        assert ids(ours, text) == ids(theirs, text)
    assert name_of(theirs) == name_of(ours) == "smollm"


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_the_name_is_found_again(words, name):
    found = name_of(split_as(words, name))
    assert PRE_TOKENIZERS[found] == PRE_TOKENIZERS[name]


def test_a_split_without_a_name_has_none(words):
    """tekken and gpt-4o hold the digits of qwen2 and llama-bpe and are neither."""
    tokenizer = split_as(words, "tekken")
    assert name_of(tokenizer) == "tekken"
    other = Tokenizer.from_str(tokenizer.to_str())
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\p{L}\p{N}]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    assert name_of(other) is None
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert name_of(other) is None


def test_a_file_is_converted_with_its_split(words, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "CACHE", tmp_path)
    file = tmp_path / "model.gguf"
    write(file, words, "smollm")
    model, tokenizer = load_language(str(file))
    assert model.config.hidden_size == 32
    expected = split_as(words, "smollm")
    for text in TEXTS:
        assert tokenizer(text, add_special_tokens=False).input_ids == ids(expected, text)
    assert tokenizer("<|im_end|>").input_ids == [tokenizer.eos_token_id]


def test_a_folder_of_an_earlier_version_is_made_anew(words, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "CACHE", tmp_path)
    file = tmp_path / "model.gguf"
    write(file, words, "smollm")
    folder = conversion.convert_gguf(file)
    earlier = folder.rename(folder.with_name(folder.name.rpartition("-v")[0]))
    assert conversion.convert_gguf(file) == folder
    assert folder.is_dir()
    assert not earlier.exists()


def test_an_unknown_split_is_refused_by_name(words, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "CACHE", tmp_path)
    file = tmp_path / "model.gguf"
    write(file, words, "kimi-k2")
    with pytest.raises(CheckpointError, match=r"'kimi-k2', which is not known.*folder or a hub id"):
        load_language(str(file))
    assert not list((tmp_path / "gguf").glob("*"))
    file.write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="its tokenizer cannot be read"):
        load_language(str(file))


@pytest.mark.parametrize("leads", [True, False])
def test_a_space_before_the_first_word_is_as_the_file_says(leads):
    vocab = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "▁", "a", "▁a"])}
    tokenizer = LlamaTokenizer(vocab=vocab, merges=[("▁", "a")]).backend_tokenizer
    assert adds_space(tokenizer)
    follow(tokenizer, dict(zip(FIELDS[::2], ("llama", leads), strict=True)), "model.gguf")
    assert adds_space(tokenizer) is leads
    assert ids(tokenizer, "a") == ([5] if leads else [4])
    text = "a" if leads else " a"
    assert tokenizer.decode(ids(tokenizer, text)) == text


def test_a_space_put_by_a_normaliser_is_told():
    """Llama 2's own file: Prepend and Replace, without a pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE({"▁": 0, "a": 1}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    assert not adds_space(tokenizer)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    assert adds_space(tokenizer)
    assert name_of(tokenizer) == "default"


def test_the_docs_list_every_name():
    """docs/export.md is made of the table's own names."""
    page = Path(__file__).parents[2] / "docs" / "export.md"
    section = page.read_text().partition("## The words of GGUF files")[2]
    listed = section.partition("knows these names")[2].partition("Another name")[0]
    named = set(re.findall(r"`([^`]+)`", listed)) - {".gguf", "model.language_model"}
    assert named == set(PRE_TOKENIZERS)
