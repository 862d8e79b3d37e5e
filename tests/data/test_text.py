import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from chiasm.data.text import SPECIALS, train_bpe

TEXTS = ["what color is the circle?", "is there a red triangle?", "does it contain a circle?"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, 300)


@settings(max_examples=100, deadline=None)
@given(text=st.text() | st.text(st.sampled_from("is there a\n\t\u00e9\u0301😀\u200d\x00\ufffd")))
def test_any_text_encodes_without_loss(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_ids_of_special_tokens_are_the_first_in_their_order(tokenizer: Tokenizer):
    assert [tokenizer.token_to_id(name) for name in SPECIALS] == list(range(len(SPECIALS)))


def test_training_merges_what_is_frequent_and_is_reproducible(tokenizer: Tokenizer):
    seen, unseen = tokenizer.encode(TEXTS[0]).ids, tokenizer.encode(TEXTS[0][::-1]).ids
    assert len(seen) < len(unseen)
    assert tokenizer.get_vocab_size() <= 300
    assert train_bpe(TEXTS, 300).to_str() == tokenizer.to_str()


def test_a_size_without_room_for_the_bytes_is_refused():
    smallest = len(SPECIALS) + 256
    assert train_bpe(["a"], smallest).get_vocab_size() == smallest
    with pytest.raises(ValueError, match=f"at least {smallest} ids, got {smallest - 1}"):
        train_bpe(["a"], smallest - 1)
