#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0: Qwen2-VL, Qwen2.5-VL and Qwen3-VL keep the difference between text
# positions and M-RoPE positions (`model.model.rope_deltas`) on the module, not in the KV cache. A
# conversation that goes on from its own past_key_values after the same model has answered about
# another image is computed at the positions of that other image: other logits and replies, no
# warning. Without an answer in between, and from scratch, they agree to 1e-4. Whoever keeps caches of
# several conversations (chat servers, tree search, agents) gets wrong text turns. Exits nonzero when
# this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy pillow
cat > "$folder/probe.py" <<'P'
import torch
import transformers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

TEXT = dict(
    vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
    initializer_range=0.3,
    rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
)  # fmt: skip
TOWER = dict(depth=2, num_heads=4, hidden_size=32, initializer_range=0.3)
IDS = dict(image_token_id=120, video_token_id=119, vision_start_token_id=121, vision_end_token_id=122)
FAMILIES = {
    "Qwen2-VL": (Qwen2VLForConditionalGeneration, Qwen2VLConfig, 14,
                 dict(embed_dim=32, mlp_ratio=2)),
    "Qwen2.5-VL": (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, 14,
                   dict(intermediate_size=64, out_hidden_size=32, fullatt_block_indexes=[1])),
    "Qwen3-VL": (Qwen3VLForConditionalGeneration, Qwen3VLConfig, 16,
                 dict(intermediate_size=64, out_hidden_size=32, num_position_embeddings=64,
                      deepstack_visual_indexes=[0])),
}  # fmt: skip


def prompt(seed, side, patch):
    """Text, one image of side x side patches, text."""
    random = torch.Generator().manual_seed(seed)
    tokens = side * side // 4
    words = torch.randint(3, 110, (8,), generator=random).tolist()
    ids = torch.tensor([[1, 121, *[120] * tokens, 122, *words]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == 120).int(),
        "pixel_values": torch.randn(side * side, 3 * 2 * patch * patch, generator=random),
        "image_grid_thw": torch.tensor([[1, side, side]]),
    }


def longer(first, ids):
    grown = ids.shape[1] - first["input_ids"].shape[1]
    kinds = torch.nn.functional.pad(first["mm_token_type_ids"], (0, grown))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}


def second_turn(model, patch, another_between):
    """(logits from scratch, logits on the cache of the first turn) of a second, text-only turn."""
    first = prompt(1, 8, patch)
    done = model.generate(**first, max_new_tokens=4, min_new_tokens=4, do_sample=False,
                          return_dict_in_generate=True)  # fmt: skip
    if another_between:
        model.generate(**prompt(2, 16, patch), max_new_tokens=4, do_sample=False)
    ids = torch.cat([done.sequences, torch.tensor([[33, 44, 55, 66]])], 1)
    again = longer(first, ids)
    how = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False, output_logits=True,
               return_dict_in_generate=True)  # fmt: skip
    cached = model.generate(**again, past_key_values=done.past_key_values, **how)
    images = {name: first[name] for name in ("pixel_values", "image_grid_thw")}
    whole = model.generate(**again, **images, **how)
    return torch.stack(whole.logits), torch.stack(cached.logits)


print("transformers", transformers.__version__, "torch", torch.__version__)
for name, (kind, config, patch, more) in FAMILIES.items():
    torch.manual_seed(0)
    model = kind(config(text_config=TEXT, vision_config={**TOWER, "patch_size": patch, **more}, **IDS)).eval()
    for between in (False, True):
        whole, cached = second_turn(model, patch, between)
        apart = (whole[0] - cached[0]).abs().max().item()
        same = torch.equal(whole.argmax(-1), cached.argmax(-1))
        print(f"{name}: another image answered in between: {between}; first logits of the second "
              f"turn, cached against from scratch: {apart:.1e}; same 8 tokens: {same}")  # fmt: skip
        assert (apart > 1e-2) == between, (name, between, apart)
P
"$folder/venv/bin/python" "$folder/probe.py" 2>&1 | grep -v Warning
