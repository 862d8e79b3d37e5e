#!/usr/bin/env bash
# transformers 5.23.0: Trainer with gradient_accumulation_steps weighs every token alike for LLaVA and
# Qwen2-VL (batch 1 x 4 gives the gradient of batch 4), but not for Qwen2.5-VL and Qwen3-VL, whose
# classes say `accepts_loss_kwargs = False`: there every micro-batch weighs alike, whatever its number
# of supervised tokens. Their forward takes num_items_in_batch all the same. (By their source GLM-4V,
# Gemma 4, Qwen3.5 and Molmo2 go the second way, Gemma 3 and Idefics3 the first.) A recipe moved from
# Qwen2-VL to Qwen2.5-VL, or from a large card to a small one, trains another objective: a reply of
# three tokens counts as much as one of sixty. Exits nonzero when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy pillow
cat > "$folder/probe.py" <<'P'
import sys

import torch
import transformers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

TEXT = dict(
    vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
)  # fmt: skip
TOWER = dict(depth=2, num_heads=4, hidden_size=32)
IDS = dict(image_token_id=120, video_token_id=119, vision_start_token_id=121, vision_end_token_id=122)
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}


def qwen(config, tower):
    return config(text_config={**TEXT, "rope_parameters": ROPE}, vision_config={**TOWER, **tower}, **IDS)


FAMILIES = {
    "LLaVA": (LlavaForConditionalGeneration, lambda: LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                       num_attention_heads=4, image_size=28, patch_size=14),
        text_config=LlamaConfig(**TEXT), image_token_index=120)),
    "Qwen2-VL": (Qwen2VLForConditionalGeneration,
                 lambda: qwen(Qwen2VLConfig, dict(embed_dim=32, mlp_ratio=2, patch_size=14))),
    "Qwen2.5-VL": (Qwen2_5_VLForConditionalGeneration, lambda: qwen(Qwen2_5_VLConfig, dict(
        intermediate_size=64, out_hidden_size=32, fullatt_block_indexes=[1], patch_size=14))),
    "Qwen3-VL": (Qwen3VLForConditionalGeneration, lambda: qwen(Qwen3VLConfig, dict(
        intermediate_size=64, out_hidden_size=32, num_position_embeddings=16,
        deepstack_visual_indexes=[0], patch_size=16))),
}  # fmt: skip


def sample(name, words, seed):
    """One image and a text of so many words, all of them supervised."""
    random = torch.Generator().manual_seed(seed)
    text = torch.randint(3, 110, (words,), generator=random).tolist()
    ids = torch.tensor([1, 121, *[120] * 4, 122, *text])
    if name == "LLaVA":
        pixels = {"pixel_values": torch.randn(3, 28, 28, generator=random)[None]}
    else:
        side = 16 if name == "Qwen3-VL" else 14
        pixels = {"pixel_values": torch.randn(16, 6 * side * side, generator=random),
                  "image_grid_thw": torch.tensor([[1, 4, 4]])}  # fmt: skip
    return {"input_ids": ids, "labels": ids.where((ids < 119), -100), **pixels}


def collate(rows):
    padded = {
        key: torch.nn.utils.rnn.pad_sequence([row[key] for row in rows], True, fill)
        for key, fill in (("input_ids", 0), ("labels", -100))
    }
    images = {key: torch.cat([row[key] for row in rows]) for key in rows[0] if key not in padded}
    if "image_grid_thw" in images:
        images["mm_token_type_ids"] = (padded["input_ids"] == 120).int()
    return {**padded, "attention_mask": (padded["input_ids"] != 0).long(), **images}


class Keep(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        self.gradient = self.gradient.clone()


def gradient(name, batch, accumulate):
    kind, config = FAMILIES[name]
    torch.manual_seed(0)
    keep = Keep()
    arguments = TrainingArguments(
        sys.argv[1], per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate,
        max_steps=1, learning_rate=0.0, max_grad_norm=0.0, remove_unused_columns=False, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    rows = [sample(name, words, seed) for seed, words in enumerate((3, 6, 20, 60))]
    Trainer(model=kind(config()), args=arguments, train_dataset=rows, data_collator=collate,
            callbacks=[keep]).train()  # fmt: skip
    return keep.gradient


print("transformers", transformers.__version__)
for name in FAMILIES:
    whole, parts = gradient(name, 4, 1), gradient(name, 1, 4)
    apart = ((whole - parts).norm() / whole.norm()).item()
    print(f"{name}: batch 1 x 4 steps against batch 4: relative difference of the gradient {apart:.1e}")
    expected_equal = name in ("LLaVA", "Qwen2-VL")
    assert (apart < 1e-3) == expected_equal, (name, apart)
    assert expected_equal or apart > 0.1, (name, apart)
P
"$folder/venv/bin/python" "$folder/probe.py" "$folder/out"
