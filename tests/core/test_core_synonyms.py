"""Hints name what the field's usual word stands for, before similar spellings."""

import pytest

from chiasm.core.config import override
from chiasm.core.errors import ConfigError
from chiasm.core.registry import nearest
from chiasm.core.synonyms import ADVICE, SYNONYMS
from chiasm.recipes.recipe import find


@pytest.mark.parametrize(
    ("recipe", "typed", "meant"),
    [
        ("mllm_smol", "stages.1.learning_rate", "'stages.1.lr'"),
        ("mllm_smol", "learning_rate", "'stages.0.lr'"),
        ("mllm_smol", "gradient_checkpointing", "'stages.0.gradient_checkpointing'"),
        ("mllm_smol", "activation_checkpointing", "'stages.0.gradient_checkpointing'"),
        ("mllm_smol", "stages.2.batch_size", "'stages.2.batch_tokens'"),
        ("mllm_smol", "stages.0.lr_scheduler", "'stages.0.schedule'"),
        ("mllm_smol", "model.llm", "'model.language_model'"),
        ("mllm_smol", "model.vision_tower", "'model.encoder'"),
        ("mllm_smol", "world_size", "torchrun"),
        ("unified_nano", "model.d_model", "'model.hidden_size'"),
        ("unified_nano", "hidden_size", "'model.hidden_size'"),
        ("unified_nano", "model.num_hidden_layers", "'model.layers'"),
        ("unified_nano", "model.num_key_value_heads", "'model.kv_heads'"),
        ("unified_nano", "save_total_limit", "'keep_checkpoints'"),
        ("encoder", "model.vision.hidden_size", "'model.vision.width'"),
        ("encoder", "stages.0.stpes", "'stages.0.steps'"),
    ],
)
def test_a_recipes_fields(recipe, typed, meant):
    with pytest.raises(ConfigError, match=rf"unknown field '{typed}' in recipe; .*{meant}"):
        override(find(recipe), {typed: "1"})


def test_every_field_of_the_table_is_one():
    """Of some recipe."""
    from chiasm.core.config import leaves

    names = ("encoder", "tokenizer", "mllm_smol", "unified_nano", "llava15_7b")
    lora = override(find("mllm_smol"), {"model.lora": '{"kind": "lora"}'})
    known = [name for recipe in [*map(find, names), lora] for name in leaves(recipe)]
    whole = {"model.projector", "model.quantizer", "model.lora"}  # set as a whole too
    known += whole
    for field in SYNONYMS:
        assert any(name == field or name.endswith(f".{field}") for name in known), field
    assert not set(ADVICE) & {theirs for words in SYNONYMS.values() for theirs in words}


def test_without_a_synonym_the_spelling_decides():
    assert nearest("tabels", ["tables", "charts"]) == "; did you mean 'tables'?"
    assert nearest("zzz", ["tables"]) == ""
    assert nearest("learning_rate", ["tables"]) == ""
