"""A contrastive step against open_clip_torch with the same towers.

SigLIP's B/16 at 224 pixels (open_clip's ViT-B-16-SigLIP): the same vision tower with its attention
pool, the same text tower of 12 layers, sigmoid loss, all of it trained from random weights, on the
same images and captions of 8 to 24 tokens.

    ours   chiasm.vision.contrastive.DualEncoder; captions as long as the batch's longest
    peer   open_clip's CustomTextCLIP and SigLipLoss; captions padded to the context of 64 tokens,
           as its tokenizer gives them

Both: the same precision (--precision; by default what is faster here), equal threads, AdamW
(fused), a unit is an image with its caption. Before timing the
two losses are checked to be equal with equal weights, on captions as long as the context: shorter
ones open_clip reads at the last padding token, and lets it see the padding. GELU is exact in
open_clip's and tanh's in ours; in the check both are tanh's. A second part has captions of 64
tokens on both sides.

Needs `pip install open_clip_torch` (with its torchvision and timm), which nothing else here does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import Precision, Run, alternate, report, result, training_arguments
from chiasm.core.allocator import keep_freed_memory
from chiasm.core.batch import ImageBatch
from chiasm.vision.config import ContrastiveConfig, ViTConfig
from chiasm.vision.contrastive import DualEncoder
from chiasm.vision.patches import patchify

IMAGES = 6
SIDE, PATCH = 224, 16
CONTEXT, VOCABULARY, WIDTH, LAYERS, HEADS = 64, 32_000, 768, 12, 12


def open_clip() -> Any:
    """The peer's package. SystemExit where it is not installed."""
    try:
        import open_clip
    except ImportError as error:
        raise SystemExit(f"contrastive: pip install open_clip_torch ({error})") from None
    return open_clip


def peer_model() -> nn.Module:
    return open_clip().create_model("ViT-B-16-SigLIP", load_weights=False)


def ours_model() -> DualEncoder:
    vision = ViTConfig(
        image_size=SIDE, patch_size=PATCH, width=WIDTH, layers=LAYERS, heads=HEADS, mlp_ratio=4
    )
    return DualEncoder(
        ContrastiveConfig(
            vision=vision,
            embedding=WIDTH,
            text_width=WIDTH,
            text_layers=LAYERS,
            text_heads=HEADS,
            vocabulary=VOCABULARY,
            context=CONTEXT,
        )
    )


BLOCK = {
    "layer_norm1": ("norm1", "ln_1"),
    "self_attn.out_proj": ("attn.proj", "attn.out_proj"),
    "layer_norm2": ("norm2", "ln_2"),
    "mlp.fc1": ("mlp.fc1", "mlp.c_fc"),
    "mlp.fc2": ("mlp.fc2", "mlp.c_proj"),
}
"""Our names in a block, theirs in the vision tower (timm) and in the text tower."""


@torch.no_grad()
def copy_weights(ours: DualEncoder, peer: nn.Module) -> None:
    """Give the peer ours. The linear layer that ours has on the pooled image becomes the
    identity: the peer has none."""
    ours.image_projection.weight.copy_(torch.eye(WIDTH))
    ours.image_projection.bias.zero_()
    mine, theirs = ours.state_dict(), peer.state_dict()
    names = {
        "vision.post_layernorm": "visual.trunk.norm",
        "pool.attention.q_proj": "visual.trunk.attn_pool.q",
        "pool.attention.out_proj": "visual.trunk.attn_pool.proj",
        "pool.layernorm": "visual.trunk.attn_pool.norm",
        "pool.mlp.fc1": "visual.trunk.attn_pool.mlp.fc1",
        "pool.mlp.fc2": "visual.trunk.attn_pool.mlp.fc2",
        "text.final_layer_norm": "text.ln_final",
        "text_projection": "text.text_projection",
    }
    for i in range(LAYERS):
        for own, (seen, read) in BLOCK.items():
            names[f"vision.layers.{i}.{own}"] = f"visual.trunk.blocks.{i}.{seen}"
            names[f"text.layers.{i}.{own}"] = f"text.transformer.resblocks.{i}.{read}"
    for kind in ("weight", "bias"):
        for own, name in names.items():
            theirs[f"{name}.{kind}"].copy_(mine[f"{own}.{kind}"])
        for i in range(LAYERS):
            for own, name in (
                (f"vision.layers.{i}.self_attn", f"visual.trunk.blocks.{i}.attn.qkv.{kind}"),
                (
                    f"text.layers.{i}.self_attn",
                    f"text.transformer.resblocks.{i}.attn.in_proj_{kind}",
                ),
            ):
                theirs[name].copy_(torch.cat([mine[f"{own}.{x}_proj.{kind}"] for x in "qkv"]))
        keys = [mine[f"pool.attention.{x}_proj.{kind}"] for x in "kv"]
        theirs[f"visual.trunk.attn_pool.kv.{kind}"].copy_(torch.cat(keys))
    first = mine["vision.patch_embedding.weight"].view(WIDTH, 3, PATCH, PATCH)
    theirs["visual.trunk.patch_embed.proj.weight"].copy_(first)
    theirs["visual.trunk.patch_embed.proj.bias"].copy_(mine["vision.patch_embedding.bias"])
    theirs["visual.trunk.pos_embed"].copy_(mine["vision.position_embedding"][None])
    theirs["visual.trunk.attn_pool.latent"].copy_(mine["pool.probe"])
    theirs["text.token_embedding.weight"].copy_(mine["text.token_embedding.weight"])
    theirs["text.positional_embedding"].copy_(mine["text.position_embedding"])
    theirs["logit_scale"].copy_(mine["log_scale"])
    theirs["logit_bias"].copy_(mine["bias"])


def make_batch(shortest: int, longest: int) -> tuple[ImageBatch, dict[str, Tensor]]:
    """The same images and captions for either side; zero is padding."""
    random = np.random.default_rng(0)
    pixels = random.uniform(-1, 1, (IMAGES, SIDE, SIDE, 3)).astype(np.float32)
    lengths = torch.from_numpy(random.integers(shortest, longest + 1, IMAGES))
    texts = torch.zeros(IMAGES, CONTEXT, dtype=torch.int64)
    for row, length in enumerate(lengths.tolist()):
        texts[row, :length] = torch.from_numpy(random.integers(1, VOCABULARY, length))
    batch = ImageBatch(
        torch.from_numpy(np.concatenate([patchify(image, PATCH) for image in pixels])),
        torch.tensor([[SIDE // PATCH] * 2] * IMAGES),
        texts[:, : int(lengths.max())],
        lengths,
        torch.eye(IMAGES, dtype=torch.bool),
    )
    return batch, {
        "image": torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        "text": texts,
    }


def peer_loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return open_clip().loss.SigLipLoss()(*model(**inputs))


def check(ours: DualEncoder, peer: nn.Module) -> None:
    """Equal weights must give equal losses, or the two sides are not taught the same."""
    copy_weights(ours, peer)
    batch, inputs = make_batch(CONTEXT, CONTEXT)
    exact = [m for m in peer.modules() if isinstance(m, nn.GELU)]
    for activation in exact:
        activation.approximate = "tanh"
    with torch.no_grad():
        loss = ours.loss(batch)
        mine, theirs = float(loss.sum) / loss.count, float(peer_loss(peer, inputs))
    for activation in exact:
        activation.approximate = "none"
    if abs(mine - theirs) > 1e-4 * theirs:
        raise SystemExit(f"contrastive: losses differ, ours {mine:.6f}, the peer's {theirs:.6f}")


def ours_run(model: DualEncoder, batch: ImageBatch, precision: Precision) -> Run:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> float:
        with precision():
            loss = model.loss(batch)
        (loss.sum / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return IMAGES

    return run


def peer_run(model: nn.Module, inputs: dict[str, Tensor], precision: Precision) -> Run:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> float:
        with precision():
            loss = peer_loss(model, inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return IMAGES

    return run


def main() -> None:
    rounds, precision = training_arguments(__doc__, 3)
    keep_freed_memory()
    torch.manual_seed(0)
    ours, peer = ours_model(), peer_model()
    check(ours.eval(), peer.eval())
    parts = {}
    for name, shortest, longest in (("captions", 8, 24), ("full", CONTEXT, CONTEXT)):
        batch, inputs = make_batch(shortest, longest)
        measured = alternate(
            ours_run(ours.train(), batch, precision),
            peer_run(peer.train(), inputs, precision),
            rounds,
        )
        parts[f"{name}, {precision.name}"] = result("images/s", measured)
    worst = min(parts.values(), key=lambda part: part["ratio"])
    report("contrastive", {**worst, "parts": parts})


if __name__ == "__main__":
    main()
