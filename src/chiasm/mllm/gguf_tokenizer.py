"""Pre-tokenizers by their names in GGUF (`tokenizer.ggml.pre`), for reading and for writing.

A byte-level BPE tokenizer first splits text into words and merges bytes only inside a word, so the
split belongs to the model as much as its merges do. GGUF stores it as a name, and llama.cpp holds
the regular expressions behind each name (src/llama-vocab.cpp, llm_tokenizer_bpe). Each expression
is applied in turn to the pieces that the earlier ones left, and isolates its matches.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

from chiasm.core.errors import CheckpointError


@dataclass(frozen=True)
class PreTokenizer:
    """How text becomes words.

    patterns: regular expressions, each isolating its matches in what the earlier ones left.
    ignore_merges: a word that is in the vocabulary is one token, whatever its merges.
    nfc: the model's own tokenizer normalises to NFC first (llama.cpp does not).
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    nfc: bool = False


_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ONE = r"[^\r\n\p{L}\p{N}]?"
_CJK = "[一-龥\u3040-ゟ゠-ヿ]+"


def _words(digits: str) -> str:
    """Letters with one sign before them, digits, signs with the line breaks behind them."""
    signs = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
    return rf"{_SUFFIX}|{_ONE}\p{{L}}+|{digits}|{signs}|{_SPACES}"


def _cased(suffix: str, digits: str) -> str:
    """As _words, but a word also ends where a capital follows a small letter."""
    words = rf"{_ONE}{_UPPER}*{_LOWER}+{suffix}|{_ONE}{_UPPER}+{_LOWER}*{suffix}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


DIGIT = r"\p{N}"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = _words(r"\p{N}{1,3}"), _words(DIGIT)
QWEN35 = (
    rf"{_SUFFIX}|{_ONE}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
TEKKEN, GPT4O = _cased("", DIGIT), _cased(f"{_SUFFIX}?", r"\p{N}{1,3}")
SEED_CODER = rf"{_SUFFIX}|{_ONE}\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)

_PLAIN, _DIGITS = PreTokenizer((GPT2,)), PreTokenizer((DIGIT, GPT2))
_LLAMA3 = PreTokenizer((LLAMA3,), ignore_merges=True)
_QWEN2 = PreTokenizer((QWEN2,), nfc=True)
_GPT4O = PreTokenizer((GPT4O,))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "gpt-2": _PLAIN,
    **dict.fromkeys(("phi-2", "mpt", "olmo", "jais", "gigachat", "mellum", "a.x-4.0"), _PLAIN),
    **dict.fromkeys(("exaone4", "trillion", "granite-docling"), _PLAIN),
    "smollm": _DIGITS,
    **dict.fromkeys(("starcoder", "refact", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    "command-r": PreTokenizer((DIGIT, GPT2), nfc=True),
    "llama-bpe": _LLAMA3,
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral"), _LLAMA3),
    **dict.fromkeys(("midm-2.0", "lfm2"), _LLAMA3),
    "smaug-bpe": PreTokenizer((LLAMA3,)),
    **dict.fromkeys(("dbrx", "glm4", "chatglm-bpe"), PreTokenizer((LLAMA3,))),
    "qwen2": _QWEN2,
    **dict.fromkeys(("deepseek-r1-qwen", "kormo", "megrez", "stablelm2"), _QWEN2),
    **dict.fromkeys(("hunyuan", "solar-open", "grok-2"), PreTokenizer((QWEN2,))),
    "qwen35": PreTokenizer((QWEN35,), nfc=True),
    "tekken": PreTokenizer((TEKKEN,), ignore_merges=True),
    "gpt-4o": _GPT4O,
    **dict.fromkeys(("llama4", "minimax-m2"), _GPT4O),
    "seed-coder": PreTokenizer((SEED_CODER,)),
    "deepseek-coder": PreTokenizer(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT)
    ),
    "deepseek-v3": PreTokenizer((r"\p{N}{1,3}", _CJK, DEEPSEEK3)),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")),
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
"""Name in GGUF -> split. Of several names of one split the first is written."""

FIELDS = MODEL, PRE, PREFIX = (
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.add_space_prefix",
)


def follow(tokenizer: Tokenizer, told: dict[str, Any], source: str) -> None:
    """Make a tokenizer that transformers converted from a GGUF split words as the file says.

    told: the file's FIELDS; source: its name, for errors. transformers 5.23 knows 23 names of
    `tokenizer.ggml.pre` and gives every other one GPT-2's split without a word; of SentencePiece's
    it overlooks `tokenizer.ggml.add_space_prefix`. A byte-level file without a name is read as
    llama.cpp reads it ("default"). Raises CheckpointError for a name that is not in the table.
    """
    if told[MODEL] == "gpt2":
        name = told.get(PRE, "default")
        if name not in PRE_TOKENIZERS:
            raise CheckpointError(
                f"{source}: its words are split in the way '{name}', which is not known here "
                f"(known: {', '.join(PRE_TOKENIZERS)}); give the model as a folder or a hub id "
                "of transformers instead"
            )
        _set_split(tokenizer, PRE_TOKENIZERS[name])
    elif adds_space(tokenizer) and not told.get(PREFIX, True):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )


def adds_space(tokenizer: Tokenizer) -> bool:
    """Whether a SentencePiece-like tokenizer puts a space before the first word: by a normaliser
    (Prepend) or by its pre-tokenizer (Metaspace)."""
    told = json.loads(tokenizer.to_str())
    steps = told["pre_tokenizer"] or {}
    spaces = [s for s in steps.get("pretokenizers", [steps]) if s.get("type") == "Metaspace"]
    by_step = any(step["prepend_scheme"] != "never" for step in spaces)
    return by_step or '"type": "Prepend"' in json.dumps(told["normalizer"])


def _set_split(tokenizer: Tokenizer, how: PreTokenizer) -> None:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in how.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.model.ignore_merges = how.ignore_merges
    if how.nfc:
        tokenizer.normalizer = normalizers.NFC()


def name_of(tokenizer: Tokenizer) -> str | None:
    """The name under which GGUF knows how a tokenizer splits words; None if it has none.

    SentencePiece-like BPE with byte fallback needs no split and is called "default". Told by the
    steps in the tokenizer's own JSON, which must be those of the table and no others.
    """
    told = json.loads(tokenizer.to_str())
    if told["model"]["type"] != "BPE":
        return None
    if told["model"].get("byte_fallback"):
        return "default"
    patterns, nfc = _patterns(told["pre_tokenizer"]), _normalises(told["normalizer"])
    if patterns is None or nfc is None:
        return None
    how = PreTokenizer(patterns, bool(told["model"].get("ignore_merges")))
    # llama.cpp normalises nothing, so a split without a name for NFC goes by the other's.
    wanted = [replace(how, nfc=nfc), how, replace(how, nfc=True)]
    return next((name for w in wanted for name, h in PRE_TOKENIZERS.items() if h == w), None)


def _patterns(step: dict | None) -> tuple[str, ...] | None:
    """The expressions that the steps before the bytes amount to; None for other steps."""
    steps = (step or {}).get("pretokenizers", [step])
    last = steps[-1] or {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    found = [_pattern(s) for s in steps[:-1]] + ([GPT2] if last.get("use_regex", True) else [])
    return None if None in found else tuple(p for p in found if p is not None)


def _pattern(step: dict) -> str | None:
    if step["type"] == "Digits":
        return DIGIT if step["individual_digits"] else r"\p{N}+"
    if step["type"] != "Split":
        return None
    kept = "Isolated", False
    matched = "Removed", True  # what is between the matches goes; these expressions leave nothing
    if (step["behavior"], step["invert"]) not in (kept, matched):
        return None
    return step["pattern"].get("Regex")


def _normalises(step: dict | None) -> bool | None:
    """Whether text is normalised to NFC; None for another normaliser, which llama.cpp lacks."""
    if step is None or step == {"type": "Sequence", "normalizers": []}:
        return False
    return True if step == {"type": "NFC"} else None
