"""The files of a checkpoint of transformers that versions 4 and 5 both read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chiasm.core.quiet import quiet
from chiasm.data.template import ChatTemplate, PublishedTemplate
from chiasm.hub.versions import both_rotations, spell_tokenizer, write_json
from chiasm.mllm.model import MLLM
from chiasm.vision.config import TowerConfig


def write_weights(folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """safetensors, in parts of at most 5 GB with an index where they are more."""
    from huggingface_hub import save_torch_state_dict

    state = {name: value.detach().to("cpu", dtype).contiguous() for name, value in tensors.items()}
    save_torch_state_dict(state, folder, max_shard_size="5GB")


def language_tensors(model: MLLM, rows: int) -> tuple[dict[str, Tensor], Tensor | None]:
    """The language model's body and, unless it is the embedding, its head, both with at least
    `rows` words: an image's word needs a row even where it is never looked at. A new row is the
    mean of all, whose logit is the mean too: never the largest."""
    base = model.language.base_model
    body = dict(base.state_dict())
    embedding, head = model.language.get_input_embeddings(), model.head
    place = next(name for name, part in base.named_modules() if part is embedding)
    body[f"{place}.weight"] = grown(embedding.weight, rows)
    tied = head.weight is embedding.weight
    return body, None if tied else grown(head.weight, rows)


def grown(table: Tensor, rows: int) -> Tensor:
    """[V D] -> [max(V, rows) D]"""
    more = rows - len(table)
    return table if more <= 0 else torch.cat([table, table.mean(0).expand(more, -1)])


def text_config(model: MLLM, rows: int) -> dict[str, Any]:
    """The language model's configuration, its rotation said as both versions read it."""
    config = model.language.config.to_dict()
    config["vocab_size"] = max(rows, config["vocab_size"])
    config["tie_word_embeddings"] = (
        model.head.weight is model.language.get_input_embeddings().weight
    )
    for private in [key for key in config if key.startswith("_")]:
        config.pop(private)
    return both_rotations(config)


def write_config(folder: Path, config: dict[str, Any], dtype: torch.dtype, model: MLLM) -> None:
    """config.json and generation_config.json."""
    name = str(dtype).removeprefix("torch.")
    config = {**config, "dtype": name, "torch_dtype": name}
    write_json(folder / "config.json", config)
    with quiet():
        model.language.generation_config.save_pretrained(folder)


def image_settings(tower: TowerConfig | Any) -> dict[str, Any]:
    """What every image processor is told."""
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": tower.resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(tower.mean),
        "image_std": list(getattr(tower, "deviation", (0.5, 0.5, 0.5))),
    }


def write_processor(
    folder: Path,
    kind: str,
    own: dict[str, Any],
    images: dict[str, Any],
    tokenizer: Any,
    chat_template: str,
) -> None:
    """The processor of class `kind`: its own settings, those of its image processor, the tokenizer.

    Flat files, as version 4 writes them: it cannot read version 5's nested processor_config.json,
    which reads these.
    """
    write_json(folder / "processor_config.json", {"processor_class": kind, **own})
    write_json(folder / "preprocessor_config.json", {"processor_class": kind, **images})
    with quiet():
        tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    spell_tokenizer(folder / "tokenizer_config.json", processor_class=kind)
    write_json(folder / "chat_template.json", {"chat_template": chat_template})


def chat_template_for_parts(template: ChatTemplate) -> str:
    """A chat template that is told parts, as processors tell it, of one that is told text; with the
    system's words where the conversation has none."""
    if isinstance(template, PublishedTemplate):
        return template.tokenizer.chat_template
    system = ""
    if template.system is not None:
        words = json.dumps(template.system, ensure_ascii=False)
        system = (
            "{%- if not messages or messages[0].role != 'system' -%}{%- set flat.messages = "
            f"[{{'role': 'system', 'content': {words}}}] -%}}{{%- endif -%}}\n"
        )
    return _FLATTEN.format(image=template.image, system=system) + (template.tokenizer.chat_template)


_FLATTEN = """\
{{%- set flat = namespace(messages=[], text='') -%}}
{system}{{%- for message in messages -%}}
{{%- if message.content is string -%}}{{%- set flat.text = message.content -%}}
{{%- else -%}}{{%- set flat.text = '' -%}}
{{%- for part in message.content -%}}
{{%- set flat.text = flat.text + (part.text if part.type == 'text' else '{image}') -%}}
{{%- endfor -%}}{{%- endif -%}}
{{%- set flat.messages = flat.messages + [dict(message, content=flat.text)] -%}}
{{%- endfor -%}}
{{%- set messages = flat.messages -%}}
"""
