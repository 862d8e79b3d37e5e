"""Models of published layouts through the Python API: loaded, and saved in their own layout."""

import pytest
import torch

import chiasm
from stock_toys import noise, write

TALK = "what colour is it?"


@pytest.mark.parametrize("name", ["llava-siglip", "paligemma2"])
def test_loaded_and_saved_in_its_layout(name, tmp_path):
    write(name, tmp_path / "stock")
    vlm = chiasm.load(tmp_path / "stock", "cpu")
    part = {"type": "image", "image": noise(40, 30)}
    talk = [
        {"role": "user", "content": [part, {"type": "text", "text": TALK}]},
        {"role": "assistant", "content": "red"},
    ]
    batch = vlm.processor([talk])
    saved = vlm.save(tmp_path / "out")
    card = (saved / "README.md").read_text()
    assert "ForConditionalGeneration.from_pretrained" in card
    again = chiasm.load(saved, "cpu")
    assert torch.equal(again.processor([talk]).input_ids, batch.input_ids)
    assert torch.equal(again(batch).logits, vlm(batch).logits)
