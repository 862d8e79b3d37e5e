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

    tokenizer = AutoTokenizer.from_pretrained(source)
    stated = _stated(tokenizer, source)
    return tokenizer if stated is None else PreTrainedTokenizerFast.from_pretrained(source)


def split_as_stated(tokenizer: Any, source: str | Path) -> None:
    """Give a tokenizer that a processor has loaded the normalizer and the pre-tokenizer of its
    tokenizer.json, in place: what the processor has added to it stays."""
    stated = _stated(tokenizer, source)
    if stated is not None:
        backend = tokenizer.backend_tokenizer
        backend.normalizer, backend.pre_tokenizer = stated.normalizer, stated.pre_tokenizer


def _stated(tokenizer: Any, source: str | Path) -> Tokenizer | None:
    """tokenizer.json without its vocabulary, where it splits text otherwise than `tokenizer`."""
    from transformers.utils import cached_file

    backend = getattr(tokenizer, "backend_tokenizer", None)
    file = cached_file(str(source), "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    if backend is None or file is None:
        return None
    stated = json.loads(Path(file).read_text(encoding="utf-8"))
    empty = {"type": "BPE", "vocab": {}, "merges": []}  # the vocabulary takes most of the time
    without = {**stated, "model": empty, "added_tokens": [], "post_processor": None}
    found = Tokenizer.from_str(json.dumps(without))
    return None if _splitting(found) == _splitting(backend) else found


def _splitting(tokenizer: Tokenizer) -> list[bytes | None]:
    """The serialised normalizer and pre-tokenizer."""
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer)
    return [None if part is None else part.__getstate__() for part in parts]
