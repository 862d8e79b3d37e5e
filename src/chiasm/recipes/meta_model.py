"""A recipe's model without weights, and a batch that looks like its data: what a plan needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from chiasm.core.batch import IGNORE, Batch, Encoded, ImageBatch, Slot, pack
from chiasm.core.config import from_dict
from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.core.quiet import quiet
from chiasm.core.vocab import Vocabulary
from chiasm.hub.mllm import freeze
from chiasm.mllm.adapter import add_adapters
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.config import MLLMConfig
from chiasm.mllm.hf_attention import SEAM, attention_forward, run
from chiasm.mllm.model import MLLM
from chiasm.mllm.projectors import build_projector
from chiasm.nn.attention import causal_layout
from chiasm.nn.kernels import planned_kernels
from chiasm.nn.loss import token_loss
from chiasm.nn.rope import rotation
from chiasm.recipes import shapes
from chiasm.recipes.recipe import Model, find
from chiasm.train.checkpoint import read_json
from chiasm.train.stage import Stage
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig, UnifiedConfig
from chiasm.unified.model import Unified
from chiasm.vision.config import ContrastiveConfig, ViTConfig, feature_width
from chiasm.vision.contrastive import DualEncoder
from chiasm.vision.pretrained import Encoder, outline
from chiasm.vision.vit import ViT


@dataclass(frozen=True)
class Assumed:
    """What a plan supposes of a sample. text_tokens: half of them a reply. image_size: width and
    height in pixels. images_per_sample: their number."""

    text_tokens: int = 128
    image_size: tuple[int, int] = (640, 480)
    images_per_sample: int = 1


@dataclass(frozen=True)
class Outline:
    """model: shapes alone. slot: what an image is in the sequence, None where there is none."""

    config: Model
    model: Any
    slot: Slot | None = None


def outline_of(config: Model, assumed: Assumed) -> Outline:
    """The model a configuration describes; call it inside plan.memory.without_storage(). Raises
    CheckpointError for a part whose configuration cannot be had, ConfigError as training would."""
    # Module.to, which torch refuses on tensors without storage, would move nothing here.
    with patch.object(nn.Module, "_apply", lambda module, *_: module):
        if isinstance(config, MLLMConfig):
            return _mllm(config, assumed)
        if isinstance(config, UnifiedConfig):
            return _unified(config)
        if isinstance(config, AutoencoderConfig):
            return Outline(config, Autoencoder(replace(config, caption_loss_weight=0.0)))
        return Outline(config, DualEncoder(config))


def _mllm(config: MLLMConfig, assumed: Assumed) -> Outline:
    vision, language = _encoder(config), _language(config.language_model)
    width = language.config.hidden_size
    projector = build_projector(config.projector, feature_width(vision.config), width, 1.0)
    model = MLLM(vision, projector, language, language.config.vocab_size - 1)
    codec = MLLMCodec(
        vision.config, projector, model.image_token, config.image_processing, _words(model)
    )
    if config.lora is not None:
        add_adapters(model, config.lora)
    freeze(model, config.freeze_first_layers)
    return Outline(config, model, codec.outline(assumed.image_size))


def _language(source: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(SEAM, attention_forward)
    known = shapes.LANGUAGE.get(source)
    with quiet():
        try:
            config = (
                AutoConfig.for_model(**known)
                if known
                else AutoConfig.from_pretrained(str(Path(source).expanduser()))
            )
            return AutoModelForCausalLM.from_config(config, attn_implementation=SEAM)
        except (OSError, ValueError, KeyError) as error:
            raise _unknown("model.language_model", source, error) from None


def _encoder(config: MLLMConfig) -> Encoder:
    from transformers import AutoConfig

    given = config.encoder
    if given is None:
        ours = find("encoder").model
        assert isinstance(ours, ContrastiveConfig)
        return ViT(ours.vision)
    saved = Path(given).expanduser() / "model.json"
    if saved.exists():
        return ViT(from_dict(ViTConfig, read_json(saved)["vision"], str(saved)))
    known = shapes.VISION.get(given)
    with quiet():
        try:
            theirs = AutoConfig.for_model(**known) if known else AutoConfig.from_pretrained(given)
        except (OSError, ValueError, KeyError) as error:
            raise _unknown("model.encoder", given, error) from None
    return outline(given, getattr(theirs, "vision_config", theirs), config.vision)


def _unknown(field: str, source: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{field}: the configuration of {source} cannot be read "
        f"({str(error).splitlines()[0]}); give a folder, or fetch its config.json once"
    )


def _words(model: MLLM) -> Callable[[str], list[int]]:
    """Stands for a tokenizer: every special token and every line's end is one id."""
    mark = model.image_token
    return lambda text: [
        mark if word == "<image>" else 0 for word in re.findall(r"<[^>]+>|\n", text)
    ]


def _unified(config: UnifiedConfig) -> Outline:
    saved = Path(config.tokenizer or "").expanduser() / "model.json"
    images = find("tokenizer").model
    if config.tokenizer and not saved.exists():
        raise ConfigError(
            f"model.tokenizer: {config.tokenizer} holds no model.json, so how many codes an image "
            "has is not known; train it first, or give its folder"
        )
    if config.tokenizer:
        images = from_dict(AutoencoderConfig, read_json(saved), str(saved))
    assert isinstance(images, AutoencoderConfig)
    side = images.image_size // images.stride
    columns = side * getattr(images.quantizer, "depth", 1)
    v = Vocabulary(config.text_vocabulary, images.quantizer.codes, 0, 1, 2, 3, 4)
    codes = np.full(side * columns, v.first_code, np.int64)
    slot = Slot(np.concatenate([[v.begin_image], codes, [v.end_image]]), None, (side, columns))
    return Outline(config, Unified(config, v, columns), slot)


def typical(outlined: Outline, stage: Stage, assumed: Assumed) -> Batch | ImageBatch:
    """A micro-batch of a stage: as many like samples as it has room for, at least one."""
    model, config = outlined.model, outlined.config
    if outlined.slot is None or stage.objectives == "embed_align":
        return _images(outlined, stage.batch_size("images"))
    kinds = (stage.objectives or "chat").split("+")
    samples = [_sample(outlined, assumed, kind) for kind in kinds]
    mean = sum(map(len, samples)) / len(samples)
    count = max(1, int(stage.batch_size("tokens") // mean))
    batch = pack([[samples[i % len(samples)] for i in range(count)]])
    if isinstance(config, MLLMConfig) and batch.image_grids is not None:
        vit = model.vision.config
        patches = torch.empty(
            int(batch.image_grids.prod(1).sum()), 3 * vit.patch_size**2, device="meta"
        )
        batch = replace(batch, image_patches=patches)
    return batch


def _sample(outlined: Outline, assumed: Assumed, kind: str) -> Encoded:
    assert outlined.slot is not None
    slot, words = outlined.slot, assumed.text_tokens
    drawn = kind == "text_to_image"
    image = np.tile(slot.input_ids, 1 if drawn else assumed.images_per_sample)
    text = np.zeros(words, np.int64)
    ids = np.concatenate([text, image] if drawn else [image, text])
    targets = np.full(len(ids), IGNORE, np.int64)
    reply = len(image) if drawn else max(1, words // 2)
    targets[-reply:] = 0
    place = np.arange(len(ids))
    count = (1 if drawn else assumed.images_per_sample) * slot.tiles
    grids = np.tile(np.array([slot.grid], np.int64), (count, 1))
    return Encoded(ids, targets, place, np.zeros_like(ids), place, None, grids)


def _images(outlined: Outline, count: int) -> ImageBatch:
    """Images with captions of eight tokens, all distinct."""
    config = outlined.config
    if isinstance(config, MLLMConfig):
        vit, grid = outlined.model.vision.config, outlined.slot.grid  # type: ignore[union-attr]
        size = vit.patch_size
    elif isinstance(config, AutoencoderConfig):
        size, side = config.stride, config.image_size // config.stride
        grid = (side, side)
    else:
        assert isinstance(config, ContrastiveConfig)
        size, side = config.vision.patch_size, config.vision.image_size // config.vision.patch_size
        grid = (side, side)
    patches = torch.empty(count * grid[0] * grid[1], 3 * size**2, device="meta")
    texts = torch.zeros(count, 8, dtype=torch.long)
    return ImageBatch(
        patches,
        torch.tensor([grid]).expand(count, 2),
        texts,
        torch.full((count,), 8),
        torch.eye(count, dtype=torch.bool),
    )


def forward(outlined: Outline, batch: Batch | ImageBatch) -> Callable[[], Any]:
    """The forward pass of a micro-batch as autograd sees it, inside plan.memory.without_storage.
    All its tokens stand in one causal row: what is saved is the same, and no sample need be told
    from another. Attention keeps what a GPU's kernels keep, which is no matrix of all pairs."""
    model = outlined.model
    # Looked at here: inside, tensors have no numbers.
    supervised = int((batch.labels != IGNORE).sum()) if isinstance(batch, Batch) else 0
    side = 0 if batch.image_grids is None else int(batch.image_grids[0, 0])

    def work() -> Any:
        with planned_kernels(), torch.autocast("cpu", torch.bfloat16):
            if isinstance(model, MLLM):
                return _forward_mllm(model, batch, supervised)
            if isinstance(model, Unified):
                assert isinstance(batch, Batch)
                return _forward_unified(model, batch, supervised)
            assert isinstance(batch, ImageBatch)
            return _forward_images(model, batch, side)

    return work


def _patches(batch: Batch | ImageBatch) -> tuple[Tensor, Tensor]:
    assert batch.image_patches is not None
    assert batch.image_grids is not None
    return torch.empty(batch.image_patches.shape), batch.image_grids


def _forward_mllm(model: MLLM, batch: Batch | ImageBatch, supervised: int) -> Any:
    tokens = None
    if batch.image_patches is not None:
        patches, grids = _patches(batch)
        if any(p.requires_grad for p in model.vision.parameters()):
            features = model.vision(patches, grids)
        else:  # nothing of it is saved
            features = torch.empty(len(patches), feature_width(model.vision.config))
        try:
            tokens = model.projector(features, grids)
        except DataDependentOutputException:
            raise ConfigError(
                f"{type(model.projector).__name__} computes with the numbers of its grids, which a "
                "plan, of shapes alone, cannot; read them by grids.tolist() first"
            ) from None
    if isinstance(batch, ImageBatch):
        return tokens
    table = model.language.get_input_embeddings()
    x = table(torch.zeros(1, batch.input_ids.shape[1], dtype=torch.long))
    if tokens is not None and tokens.requires_grad:
        x = x + 0.0 * tokens.sum()
    position = torch.zeros(1, x.shape[1], dtype=torch.long)
    hidden = run(model.language, x, position, causal_layout(x.shape[1], x.device))
    return _head(model, hidden, supervised)


def _forward_unified(model: Unified, batch: Batch, supervised: int) -> Any:
    config, length = model.config, batch.input_ids.shape[1]
    x = model.embed_tokens(torch.zeros(1, length, dtype=torch.long))
    position = torch.zeros(1, length, dtype=torch.long)
    turn = rotation(position, config.hidden_size // config.heads, config.rope_theta)
    layout = causal_layout(length, x.device)
    for layer in model.layers:
        x = layer(x, turn, layout)
    return _head(model, model.norm(x), supervised)


def _head(model: Any, hidden: Tensor, count: int) -> Any:
    """The loss of so many tokens."""
    chosen = hidden[0, :count].clone()
    nll, z = token_loss(model.logits(chosen), torch.zeros(count, dtype=torch.long))
    return nll.sum() + z.sum()


def _forward_images(model: nn.Module, batch: ImageBatch, side: int) -> Any:
    patches, grids = _patches(batch)
    if isinstance(model, DualEncoder):
        assert batch.texts is not None
        assert batch.lengths is not None
        image = model.image_projection(model.vision(patches, grids))
        text = model.text_projection(model.text(batch.texts, batch.lengths))
        return image.sum() + text.sum()
    assert isinstance(model, Autoencoder)
    stride = model.config.stride
    z = model.encoder(torch.empty(len(grids), 3, side * stride, side * stride))
    return model.decoder(z).square().sum()
