"""Files of transformers 5 rewritten so that version 4 reads the same from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def spell_language(folder: Path) -> None:
    """Of a language model with its tokenizer, saved by version 5: config.json says the rotation
    and the precision in both ways, the tokenizer is of a class that both know."""
    file = folder / "config.json"
    config = both_rotations(json.loads(file.read_text(encoding="utf-8")))
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    write_json(file, config)
    spell_tokenizer(folder / "tokenizer_config.json")


_OUTSIDE = "rope_theta", "partial_rotary_factor"
"""What version 4 says beside rope_scaling, not in it."""


def both_rotations(config: dict[str, Any]) -> dict[str, Any]:
    """With rope_theta and rope_scaling of version 4 beside rope_parameters of version 5: a reader
    that knows one of them would take its default for the other without a word."""
    rope = config.get("rope_parameters")
    if not rope:
        return config
    if "full_attention" in rope:  # Gemma 3's two kinds of layers
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope["rope_theta"]
    portion = rope.get("partial_rotary_factor")  # of a head's width that is rotated
    if portion is not None:
        config["partial_rotary_factor"] = portion
    if config.get("model_type") == "gpt_neox":  # version 4's names
        config["rotary_emb_base"] = rope["rope_theta"]
        if portion is not None:
            config["rotary_pct"] = portion
    scaling = {k: v for k, v in rope.items() if k not in _OUTSIDE}
    config["rope_scaling"] = None if scaling.get("rope_type") == "default" else scaling
    return config


def spell_tokenizer(file: Path, **more: str) -> None:
    """Rewrite tokenizer_config.json without what version 4 does not know, with `more` in it."""
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if (file.parent / "chat_template.jinja").exists():
        config.pop("chat_template", None)
    write_json(file, config | more)


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
