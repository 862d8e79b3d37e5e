"""A visual and a text tower trained against each other: SigLIP, CLIP, and zero-shot heads."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.core.batch import ImageBatch
from chiasm.core.protocols import Cost, Loss
from chiasm.nn.attention import AttentionPlan
from chiasm.nn.flops import attention_flops, is_trained, matrix_parameters, passes
from chiasm.nn.loss import sigmoid_contrastive, softmax_contrastive
from chiasm.vision.config import ContrastiveConfig
from chiasm.vision.vit import AttentionPool, EncoderBlock, ViT


class TextTower(nn.Module):
    """texts [M L] with lengths [M] -> [M width], read at each text's last token."""

    def __init__(self, config: ContrastiveConfig):
        super().__init__()
        width = config.text_width
        self.token_embedding = nn.Embedding(config.vocabulary, width)
        self.position_embedding = nn.Parameter(torch.randn(config.context, width) * 0.02)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.layers = nn.ModuleList(
            EncoderBlock(width, config.text_heads, 4 * width) for _ in range(config.text_layers)
        )
        self.final_layer_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, texts: Tensor, lengths: Tensor) -> Tensor:
        x = self.token_embedding(texts) + self.position_embedding[: texts.shape[1]]
        seen = torch.arange(texts.shape[1], device=texts.device) < lengths[:, None]
        layout = AttentionPlan(seen[:, None, None])
        for layer in self.layers:
            x = layer(x, layout)
        last = x[torch.arange(len(x), device=x.device), lengths - 1]
        return self.final_layer_norm(last)


class DualEncoder(nn.Module):
    """Both towers, their heads and the temperature; trained by the common loop.

    Identical captions in a batch are positives of one another's images: with few distinct
    captions the one-to-one labels of the papers would call true pairs false.
    """

    def __init__(self, config: ContrastiveConfig):
        super().__init__()
        self.config = config
        self.vision = ViT(config.vision)
        self.pool = AttentionPool(config.vision)
        self.image_projection = nn.Linear(config.vision.width, config.embedding)
        self.text = TextTower(config)
        self.text_projection = nn.Linear(config.text_width, config.embedding)
        # Starting temperatures of the papers: SigLIP t' = log 10, CLIP t' = log(1/0.07).
        sigmoid = config.loss == "sigmoid"
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0 if sigmoid else 1 / 0.07)))
        self.bias = nn.Parameter(torch.tensor(config.start_bias if sigmoid else 0.0))

    def embed_images(self, patches: Tensor, grids: Tensor) -> Tensor:
        """Unit vectors [N embedding]."""
        pooled = self.pool(self.vision(patches, grids), grids)
        return F.normalize(self.image_projection(pooled), dim=-1)

    def embed_texts(self, texts: Tensor, lengths: Tensor) -> Tensor:
        """Unit vectors [M embedding]."""
        return F.normalize(self.text_projection(self.text(texts, lengths)), dim=-1)

    def loss(self, batch: ImageBatch) -> Loss:
        assert batch.texts is not None
        assert batch.lengths is not None
        assert batch.match is not None
        image = self.embed_images(batch.image_patches, batch.image_grids)
        text = self.embed_texts(batch.texts, batch.lengths)
        scale = self.log_scale.exp().clamp(max=100.0)
        if self.config.loss == "sigmoid":
            total = sigmoid_contrastive(image, text, batch.match, scale, self.bias)
        else:
            total = softmax_contrastive(image, text, batch.match, scale)
        with torch.no_grad():
            best = (image @ text.T).argmax(1)
            right = batch.match.gather(1, best[:, None]).sum()
        n = len(image)
        return Loss(total, n, {"contrastive": (total.detach(), n), "batch_accuracy": (right, n)})

    def groups(self) -> dict[str, nn.Module]:
        temperature = nn.ParameterList([self.log_scale, self.bias])
        return {
            "vision": nn.ModuleList([self.vision, self.pool, self.image_projection]),
            "text": nn.ModuleList([self.text, self.text_projection]),
            "temperature": temperature,
        }

    def blocks(self) -> list[nn.Module]:
        return [*self.vision.layers, *self.text.layers]

    def cost(self, batch: ImageBatch) -> Cost:
        """Both towers with their heads, and every image against every text."""
        batch = batch.on_host
        assert batch.lengths is not None
        trained = {name: is_trained(part) for name, part in self.groups().items()}
        images = self._vision_cost(batch.image_grids, trained["vision"])
        texts = self._text_cost(batch.lengths, trained["text"])
        pairs = 2.0 * len(batch.image_grids) * len(batch.lengths) * self.config.embedding
        parts = {
            "vision": images,
            "text": texts,
            # Once more for the accuracy that is logged.
            "pairs": (2 + trained["vision"] + trained["text"]) * pairs,
        }
        return Cost(sum(parts.values()), len(batch.image_patches), len(batch.image_grids), parts)

    def _vision_cost(self, grids: Tensor, trained: bool) -> float:
        config, forwards = self.config.vision, passes(trained, False)
        counts = grids.prod(1)
        patches, images = int(counts.sum()), len(grids)
        first = 2.0 * matrix_parameters(self.vision.patch_embedding) * patches
        blocks = 2.0 * matrix_parameters(self.vision.layers) * patches
        blocks += attention_flops(counts, config.width, config.layers)
        keys = 2 * config.width**2  # of an image's patches; the rest of the head is of its probe
        head = 2.0 * keys * patches + 4.0 * config.width * patches
        rest = matrix_parameters(self.pool) - keys + matrix_parameters(self.image_projection)
        head += 2.0 * rest * images
        return forwards * (blocks + head) + min(forwards, 2) * first

    def _text_cost(self, lengths: Tensor, trained: bool) -> float:
        config = self.config
        forward = 2.0 * matrix_parameters(self.text) * int(lengths.sum())
        forward += attention_flops(lengths, config.text_width, config.text_layers)
        forward += 2.0 * matrix_parameters(self.text_projection) * len(lengths)
        return passes(trained, False) * forward


@torch.no_grad()
def zero_shot_weights(model: DualEncoder, prompts: list[list[tuple[Tensor, Tensor]]]) -> Tensor:
    """Class vectors [C embedding] from tokenised prompts, one list a class:
    w_c = norm(mean_t norm(enc(t))) (CLIP, 2103.00020, section 3.1.4)."""
    rows = []
    for prompt in prompts:
        vectors = [model.embed_texts(ids[None], length[None])[0] for ids, length in prompt]
        rows.append(F.normalize(torch.stack(vectors).mean(0), dim=0))
    return torch.stack(rows)
