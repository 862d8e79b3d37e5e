"""A trained MLLM with some of its parts or settings replaced, ready to be trained further."""

from __future__ import annotations

from collections.abc import Callable, Collection

from chiasm.data.chat import chat_template
from chiasm.data.processor import Processor
from chiasm.data.template import ChatTemplate
from chiasm.hub.mllm import (
    assemble,
    base_language,
    embedding_scale,
    make_trainable,
    merge_in,
    template_for,
)
from chiasm.mllm.config import MLLMConfig
from chiasm.mllm.model import MLLM
from chiasm.mllm.vocabulary import add_tokens
from chiasm.vision.pretrained import Encoder

NEEDS_PROJECTOR = {"encoder", "vision", "language_model", "projector"}
"""Fields whose change leaves nothing of a trained projector that would be of use."""


def rebuilt(
    model: MLLM,
    processor: Processor,
    config: MLLMConfig,
    overrides: Collection[str],
    encoder: Callable[[], Encoder],
) -> tuple[MLLM, Processor, list[str]]:
    """A model of `config` from the parts of a trained one, its adapters merged; with fresh adapters
    where the configuration has some. overrides: fields of `config` that may replace parts and
    settings of the model. encoder: loads the one of `config`, where it is another.
    Returns also the names of the parts that are fresh.
    """
    merge_in(model)
    before = model.config
    changed = {name for name in overrides if getattr(config, name) != getattr(before, name)}
    known = set(processor.template.tokenizer.get_vocab())  # type: ignore[attr-defined]
    vision = encoder() if changed & {"encoder", "vision"} else model.vision
    template = processor.template
    assert isinstance(template, ChatTemplate)
    if "language_model" in changed:
        language, tokenizer = base_language(config)
        template = template_for(tokenizer, language, config)
    else:
        language, tokenizer = model.language, template.tokenizer
        if changed & {"extra_special_tokens", "chat_template", "system"}:
            add_tokens(language, tokenizer, config.extra_special_tokens)
            if "chat_template" in changed and config.chat_template is not None:
                tokenizer.chat_template = chat_template(config.chat_template)
            template = template_for(tokenizer, language, config, template.image)
    made, new_processor = assemble(
        config, vision, language, tokenizer, embedding_scale(language), template
    )
    fresh = bool(changed & NEEDS_PROJECTOR)
    if not fresh:
        own = {"image_newline": made.projector.image_newline}
        extra = {name: value for name, value in own.items() if value is not None}
        made.projector.load_state_dict(extra | model.projector.state_dict(), strict=not extra)
    make_trainable(made, tokenizer, () if "language_model" in changed else known)
    parts = {
        "encoder": vision is not model.vision,
        "projector": fresh,
        "language model": "language_model" in changed,
        "adapters": config.lora is not None,
    }
    return made, new_processor, [name for name, is_fresh in parts.items() if is_fresh]
