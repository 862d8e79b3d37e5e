"""Published training runs, counted by our cost model: the share of the data sheet's peak that they
must have reached (MFU). It is what a plan's assumption should be near.

Hours and GPUs: LLaVA-1.5 from its README and paper (2310.03744); PaliGemma 2407.07726, appendix
(1 billion examples at 224 pixels in slightly less than 3 days on 256 TPUv5e, 50 and 10 million at
448 and 896 in 15 hours each; it reports 55 %); Chameleon 2405.09818, table 2 and section 2.4 (9.2
trillion tokens seen); nanoVLM's README (6 hours on one H100) and released configuration (5 epochs,
rows of 49 + 79 tokens).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from chiasm.mllm.config import LinearConfig, MLLMConfig, MLPConfig, PixelShuffleConfig
from chiasm.plan.flops import work_of
from chiasm.plan.hardware import KNOWN
from chiasm.plan.memory import without_storage
from chiasm.recipes.meta_model import Assumed, outline_of, typical
from chiasm.recipes.recipe import Model
from chiasm.train.optim import set_trained
from chiasm.train.stage import Stage
from chiasm.unified.config import UnifiedConfig
from chiasm.vision.config import TowerOptions


@dataclass(frozen=True)
class Run:
    """samples of `words` tokens and an image each (none for the unified models, whose images are
    tokens among them); supervised: all tokens or half of the words. remark: why it is far off."""

    name: str
    model: Model
    trained: tuple[str, ...]
    samples: float
    words: int
    gpus: str
    gpu_hours: float
    remark: str = ""


def _llava(language: str) -> MLLMConfig:
    encoder = "openai/clip-vit-large-patch14-336"
    return MLLMConfig(encoder, language, MLPConfig(merge=1), None)


def _paligemma(side: int) -> MLLMConfig:
    tower = TowerOptions(-1, norm=True, image_size=side)
    encoder = "google/siglip-so400m-patch14-224"
    return MLLMConfig(
        encoder, "google/gemma-2b", LinearConfig(True), None, attention="prefix", vision=tower
    )


NANOVLM = MLLMConfig(
    "google/siglip-base-patch16-224",
    "HuggingFaceTB/SmolLM2-135M",
    PixelShuffleConfig(2),
    None,
    vision=TowerOptions(-1, norm=True),
)
CHAMELEON_7B = UnifiedConfig(
    text_vocabulary=57344,
    hidden_size=4096,
    layers=32,
    heads=32,
    kv_heads=32,
    intermediate_size=11008,
)
CHAMELEON_34B = replace(
    CHAMELEON_7B, hidden_size=8192, layers=48, heads=64, kv_heads=8, intermediate_size=22016
)
ALIGN, TUNE, ALL = (
    ("projector",),
    ("projector", "language_model"),
    ("vision", "projector", "language_model"),
)
UNIFIED = ("embedding", "transformer")
SMALL = (
    "a model of 0.2B on rows of 128 tokens does not fill an H100: launches, decoding and the "
    "evaluations between are most of its time, and its 6 hours are rounded"
)

RUNS = (
    Run("LLaVA-1.5 7B, align", _llava("lmsys/vicuna-7b-v1.5"), ALIGN, 558e3, 30, "A100", 28),
    Run("LLaVA-1.5 7B, tune", _llava("lmsys/vicuna-7b-v1.5"), TUNE, 665e3, 220, "A100", 80),
    Run("LLaVA-1.5 13B, align", _llava("lmsys/vicuna-13b-v1.5"), ALIGN, 558e3, 30, "A100", 44),
    Run("LLaVA-1.5 13B, tune", _llava("lmsys/vicuna-13b-v1.5"), TUNE, 665e3, 220, "A100", 160),
    Run("PaliGemma 3B, 224", _paligemma(224), ALL, 1e9, 128, "TPUv5e", 256 * 72),
    Run("PaliGemma 3B, 448", _paligemma(448), ALL, 50e6, 512, "TPUv5e", 256 * 15),
    Run("PaliGemma 3B, 896", _paligemma(896), ALL, 10e6, 512, "TPUv5e", 256 * 15),
    Run("Chameleon 7B", CHAMELEON_7B, UNIFIED, 9.2e12 / 4096, 4096, "A100", 856_481),
    Run("Chameleon 34B", CHAMELEON_34B, UNIFIED, 9.2e12 / 4096, 4096, "A100", 4_282_407),
    Run("nanoVLM 222M", NANOVLM, ALL, 5 * 1.7e6, 79, "H100", 6, SMALL),
)


def implied_mfu(run: Run) -> tuple[int, float, float]:
    """(parameters, FLOPs of the run, the share of the peak they are in its GPU-hours)."""
    assumed = Assumed(run.words, (640, 640), images_per_sample=0 if run.trained is UNIFIED else 1)
    with without_storage():
        outlined = outline_of(run.model, assumed)
    stage = Stage("s", 1, dict.fromkeys(run.trained, 1.0), batch_tokens=1)
    set_trained(outlined.model, stage)
    batch = typical(outlined, stage, assumed)
    if run.trained is UNIFIED:
        batch = replace(batch, labels=torch.zeros_like(batch.input_ids))  # type: ignore[union-attr]
    flops = work_of(outlined.model, batch, 1, 1).flops * run.samples
    parameters = sum(p.numel() for p in outlined.model.parameters())
    seconds = run.gpu_hours * 3600
    return parameters, flops, flops / (seconds * KNOWN[run.gpus.lower()].peak)


def table() -> str:
    """The runs as a Markdown table (docs/scale.md)."""
    rows = ["| run | parameters | FLOPs | GPU-hours | implied MFU |", "|---|---|---|---|---|"]
    for run in RUNS:
        parameters, flops, mfu = implied_mfu(run)
        rows.append(
            f"| {run.name} | {parameters / 1e9:.2f}B | {flops:.2e} | "
            f"{run.gpu_hours:,.0f} {run.gpus} | {mfu:.0%} |"
        )
    return "\n".join(rows)
