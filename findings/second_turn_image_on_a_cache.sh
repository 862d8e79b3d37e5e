#!/usr/bin/env bash
# transformers 4.57.6 against 5.23.0: a second turn with a new image, generated on the past_key_values of
# the first turn. 4.57.6 drops the pixels of every turn whose cache is not empty (LLaVA, Gemma 3): the new image's
# placeholders go in as plain word embeddings, the model answers without having seen the image, no
# warning, and any other image gives the same logits bit for bit. 5.23.0 takes the new image's pixels
# and agrees with the conversation from scratch; pixels of both turns are an error there. Chats and
# agents that keep a cache on 4.57 show their model the first image only. Exits nonzero when this
# changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/probe.py" <<'P'
import copy
import sys

import torch
import transformers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

IMAGE = 120
torch.manual_seed(0)
model = LlavaForConditionalGeneration(LlavaConfig(
    vision_config=CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                   num_attention_heads=4, image_size=28, patch_size=14,
                                   initializer_range=0.3),
    text_config=LlamaConfig(vocab_size=128, hidden_size=32, intermediate_size=64,
                            num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3),
    image_token_index=IMAGE, image_seq_length=4, vision_feature_select_strategy="default",
)).eval()  # fmt: skip
HOW = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False, return_dict_in_generate=True,
           output_logits=True)  # fmt: skip
red, blue, green = torch.randn(3, 1, 3, 28, 28, generator=torch.Generator().manual_seed(1))
ask = [IMAGE] * 4 + [5, 6, 7]
first_ids = torch.tensor([[1, *ask]])
first = model.generate(input_ids=first_ids, attention_mask=torch.ones_like(first_ids),
                       pixel_values=red, **HOW)  # fmt: skip
ids = torch.cat([first.sequences, torch.tensor([ask])], 1)


def second(pixels, cached):
    more = {"past_key_values": copy.deepcopy(first.past_key_values)} if cached else {}
    try:
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids),
                             pixel_values=pixels, **more, **HOW)  # fmt: skip
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return out.logits[0]


print("transformers", transformers.__version__)
scratch = second(torch.cat([red, blue]), cached=False)
seen, other = second(blue, cached=True), second(green, cached=True)
both = second(torch.cat([red, blue]), cached=True)
apart, blind = (seen - scratch).abs().max().item(), torch.equal(seen, other)
print(f"second turn on the cache against from scratch: {apart:.1e} (logits up to {scratch.abs().max():.0f})")
print(f"another second image gives the same logits bit for bit: {blind}")
print("pixels of both turns:", both if isinstance(both, str) else f"{(both - scratch).abs().max():.1e}")
if sys.argv[1] == "4.57.6":
    assert blind and apart > 0.1 and not isinstance(both, str)
else:
    assert not blind and apart < 1e-3 and isinstance(both, str)
P
for version in 4.57.6 5.23.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet torch==2.13.0 "transformers==$version" numpy pillow
  "$folder/$version/bin/python" "$folder/probe.py" "$version"
done
