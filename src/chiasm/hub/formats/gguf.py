"""LLaVA for llama.cpp: the language model in model.gguf, encoder and projector in mmproj.gguf."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiasm.core.errors import CheckpointError, MissingExtraError
from chiasm.data.processor import Processor
from chiasm.data.template import ChatTemplate
from chiasm.hub.formats.format import Target
from chiasm.hub.formats.gguf_language import (
    FILE_TYPES,
    language_in_the_way,
    language_tensors_named,
    named,
    read_back,
    write_language,
    write_tensors,
)
from chiasm.hub.formats.llava_family import language_obstacles
from chiasm.hub.formats.vision import CLIP, SIGLIP, vision_obstacles, vision_parts
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.config import MLPConfig, PadConfig
from chiasm.mllm.model import MLLM
from chiasm.vision.config import EncoderConfig, FusedConfig
from chiasm.vision.pretrained import Tower

MODEL, PROJECTOR = "model.gguf", "mmproj.gguf"
ACTIVATIONS = {"gelu_pytorch_tanh": True, "quick_gelu": False}
"""What the encoder may have between its layers, and whether llama.cpp is told it is GELU."""


class GGUFFormat:
    name = "GGUF"
    target: Target = "gguf"

    def recognises(self, config: dict[str, Any]) -> bool:
        return False  # it is written, not read: model.language_model takes a .gguf file

    def load(self, folder: Path) -> tuple[MLLM, Processor]:
        raise CheckpointError(f"{folder}: GGUF is only written; give the model it was made from")

    def obstacles(self, model: MLLM, processor: Processor) -> list[str]:
        codec, template = processor.codec, processor.template
        assert isinstance(codec, MLLMCodec)
        assert isinstance(template, ChatTemplate)
        found = _encoder_in_the_way(model)
        projector, width = model.projector.config, model.language.config.hidden_size
        if not isinstance(projector, MLPConfig) or (projector.layers, projector.merge) != (2, 1):
            found.append(f"the projector {projector} (it must be {MLPConfig(merge=1)})")
        elif projector.hidden not in (0, width):
            found.append(f"a projector of hidden width {projector.hidden} (the language model's)")
        if not isinstance(codec.images, PadConfig):
            found.append(
                f"images shown by {type(codec.images).__name__} (llama.cpp pads LLaVA's: PadConfig)"
            )
        if processor.prefix:
            found.append("prefix-LM attention (model.attention)")
        return found + language_obstacles(model, False) + language_in_the_way(model, template)

    def export(self, model: MLLM, processor: Processor, folder: Path) -> None:
        if importlib.util.find_spec("gguf") is None:
            raise MissingExtraError("gguf", "gguf", "Writing GGUF")
        template = processor.template
        assert isinstance(template, ChatTemplate)
        write_language(folder / MODEL, model, template, _stored(model))
        _write_projector(folder / PROJECTOR, model)

    @torch.no_grad()
    def verify(self, model: MLLM, processor: Processor, folder: Path) -> str:
        """Every tensor read back by gguf; the language model run by transformers' reader of it.
        Neither is llama.cpp itself: tests/hub/test_gguf.py runs it."""
        import gguf

        template = processor.template
        assert isinstance(template, ChatTemplate)
        count = _compare(folder / PROJECTOR, projector_tensors(model))
        rows = len(template.tokenizer)
        count += _compare(folder / MODEL, language_tensors_named(model, rows))
        config = model.language.config
        theirs = read_back(folder / MODEL, config, max(rows, config.vocab_size))
        ids = torch.arange(1, 17)[None] % rows
        given = theirs(ids, use_cache=False).logits
        theirs.load_state_dict(_plain(model, theirs))  # the same class with our weights
        apart = (theirs(ids, use_cache=False).logits - given).abs().max().item()
        limit = 1e-4 if _stored(model) == gguf.GGMLQuantizationType.F32 else 0.1
        if not apart <= limit * max(1.0, given.abs().max().item()):
            raise CheckpointError(
                f"{folder / MODEL}: read by transformers, its logits differ by up to {apart:.2g}"
            )
        return (
            f"{count} tensors read back with gguf are those of the model; the language model's "
            f"logits, read with transformers, are apart by at most {apart:.1e}"
        )


def projector_tensors(model: MLLM) -> dict[str, Tensor]:
    """Encoder and projector under their names in llama.cpp."""
    import gguf

    config, tensors = vision_parts(model.vision)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, config["num_hidden_layers"])
    found = {}
    for name, value in tensors.items():
        if name.startswith("post_layernorm") and not _normed(model):
            continue  # what is there is applied
        if not name.endswith("position_ids"):
            found[named(names, f"vision_tower.vision_model.{name}")] = value
    for number, layer in enumerate(model.projector.layers):  # type: ignore[arg-type]
        for part, value in layer.state_dict().items():
            found[f"mm.{2 * number}.{part}"] = value
    return found


def _write_projector(file: Path, model: MLLM) -> None:
    import gguf

    config, _ = vision_parts(model.vision)
    tower, dtype = model.vision.config, _stored(model)
    if dtype == gguf.GGMLQuantizationType.BF16:
        dtype = gguf.GGMLQuantizationType.F16  # llama.cpp's convolution knows no bfloat16
    writer = gguf.GGUFWriter(file, "clip")
    writer.add_type("mmproj")
    writer.add_file_type(FILE_TYPES[dtype.name])
    writer.add_clip_has_vision_encoder(True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_projection_dim(model.language.config.hidden_size)
    writer.add_vision_image_size(tower.image_size)
    writer.add_vision_patch_size(tower.patch_size)
    writer.add_vision_embedding_length(config["hidden_size"])
    writer.add_vision_feed_forward_length(config["intermediate_size"])
    writer.add_vision_block_count(config["num_hidden_layers"])
    writer.add_vision_head_count(config["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(config.get("layer_norm_eps", 1e-6))
    writer.add_vision_image_mean(list(tower.mean))
    writer.add_vision_image_std(list(getattr(tower, "deviation", (0.5, 0.5, 0.5))))
    writer.add_vision_use_gelu(ACTIVATIONS[config.get("hidden_act", "gelu_pytorch_tanh")])
    # Counted as transformers' hidden_states; without it llama.cpp leaves out the last block.
    writer.add_array(
        "clip.vision.feature_layer", list(_chosen(tower) or (len(model.vision.layers),))
    )
    single = {"v.position_embd.weight"}  # added to, not multiplied with
    tensors = projector_tensors(model)
    for name in single & tensors.keys():
        array = tensors.pop(name).detach().float().cpu().contiguous().numpy()
        writer.add_tensor(name, array)
    write_tensors(writer, tensors, dtype)


def _chosen(config: EncoderConfig) -> tuple[int, ...]:
    """The layers whose features are taken; two encoders fused have been refused before."""
    assert not isinstance(config, FusedConfig)
    return config.chosen


def _encoder_in_the_way(model: MLLM) -> list[str]:
    found = vision_obstacles(model.vision, (CLIP, SIGLIP))
    if found:
        return found
    config, _ = vision_parts(model.vision)
    tower = model.vision.config
    activation = config.get("hidden_act", "gelu_pytorch_tanh")
    if activation not in ACTIVATIONS:
        found.append(f"{activation} in the encoder (only {', '.join(ACTIVATIONS)})")
    if tower.class_token:
        found.append("class tokens among the features (model.vision.class_token)")
    layers = _chosen(tower)
    if list(layers) != sorted(layers) or (_normed(model) and len(layers) > 1):
        found.append(f"features of the layers {layers} in this order or with a norm each")
    if config["intermediate_size"] == config["hidden_size"]:
        found.append(
            "an encoder whose MLPs are no wider than it (llama.cpp would swap their sides)"
        )
    return found


def _normed(model: MLLM) -> bool:
    """Whether the encoder's last norm is over the features; that of chiasm's own always is."""
    return not isinstance(model.vision, Tower) or model.vision.config.norm


def _stored(model: MLLM) -> Any:
    """gguf's name of the precision that the model is kept in."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    known = {torch.float16: kinds.F16, torch.bfloat16: kinds.BF16}
    return known.get(model.language.config.dtype, kinds.F32)


def _plain(model: MLLM, theirs: Any) -> dict[str, Tensor]:
    """Our weights under the names of transformers' model, whose tables may have more rows."""
    state = dict(theirs.state_dict())
    for name, value in model.language.state_dict().items():
        held = state[name].clone()
        held[: len(value)] = value
        state[name] = held
    return state


def _compare(file: Path, expected: dict[str, Tensor]) -> int:
    """How many tensors a file holds, which must be these. Raises CheckpointError."""
    import gguf

    held = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    if held.keys() != expected.keys():
        odd = sorted(held.keys() ^ expected.keys())
        raise CheckpointError(f"{file}: {len(odd)} tensors more or fewer than written, {odd[0]}")
    for name, value in expected.items():
        kept = gguf.dequantize(held[name].data, held[name].tensor_type)
        ours = value.detach().float().cpu().numpy()
        if not np.allclose(kept.reshape(ours.shape), ours, rtol=2**-7, atol=1e-7):
            raise CheckpointError(f"{file}: {name} is not what was written")
    return len(held)
