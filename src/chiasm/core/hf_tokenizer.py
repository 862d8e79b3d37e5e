"""Load a tokenizer of transformers that splits text as its tokenizer.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer


def load_hf_tokenizer(source: str | Path) -> Any:
    """Return the tokenizer of a folder or hub id, with the normalizer and the pre-tokenizer of its
    tokenizer.json.

    transformers 5 takes only vocabulary and merges from that file where tokenizer_config.json names
    a class such as GPT2Tokenizer (SmolLM2 and SmolVLM do), and builds the pre-tokenizer of that
    class: other ids than in training (findings/tokenizer_class_over_tokenizer_json.sh). Where both
    agree, the class is kept. Raises what AutoTokenizer raises.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import cached_file

    tokenizer = AutoTokenizer.from_pretrained(source)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    file = cached_file(str(source), "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    if backend is None or file is None or _splitting(backend) == _splitting(_without_vocab(file)):
        return tokenizer
    return PreTrainedTokenizerFast.from_pretrained(source)


def _without_vocab(file: str) -> Tokenizer:
    """The tokenizer of a file without its vocabulary, which takes most of the time of loading."""
    stated = json.loads(Path(file).read_text(encoding="utf-8"))
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    return Tokenizer.from_str(
        json.dumps({**stated, "model": empty, "added_tokens": [], "post_processor": None})
    )


def _splitting(tokenizer: Tokenizer) -> list[bytes | None]:
    """The serialised normalizer and pre-tokenizer."""
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer)
    return [None if part is None else part.__getstate__() for part in parts]
