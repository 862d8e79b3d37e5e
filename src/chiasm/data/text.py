"""Byte-level BPE trained on the user's own text, with the special tokens both routes need."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, BEGIN, END, BEGIN_IMAGE, END_IMAGE = "<pad>", "<s>", "</s>", "<image>", "</image>"
USER, ASSISTANT, SYSTEM = "<user>", "<assistant>", "<system>"
MASK, ROW_END, SIDE = "<mask>", "<row>", "<side {}>"
"""Only of models that need them: see core.vocab.Vocabulary."""
SPECIALS = (PAD, BEGIN, END, BEGIN_IMAGE, END_IMAGE, USER, ASSISTANT, SYSTEM)


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `size` ids (8 special, 256 bytes, the rest merges).

    Any text encodes without loss. Raises ValueError if size leaves no room for the bytes.
    """
    if size < len(SPECIALS) + 256:
        raise ValueError(
            f"a byte-level vocabulary needs at least {len(SPECIALS) + 256} ids, got {size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def add_image_tokens(tokenizer: Tokenizer, mask: bool, row_end: bool, sides: int) -> None:
    """Give a tokenizer, in place, those of the image's further special tokens that it lacks;
    sides: the largest number of rows or columns of codes."""
    wanted = [MASK] * mask + [ROW_END] * row_end
    wanted += [SIDE.format(number + 1) for number in range(sides)]  # last: ids in one run
    tokenizer.add_special_tokens([name for name in wanted if tokenizer.token_to_id(name) is None])
