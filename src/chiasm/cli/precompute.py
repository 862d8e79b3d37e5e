"""chiasm precompute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from chiasm.cli.options import DeviceOptions, JobOptions
from chiasm.core.errors import ConfigError


@dataclass(kw_only=True)
class Precompute(JobOptions, DeviceOptions):
    """Encode a data set's training images once: as codes, for train unified_nano
    --model.image_codes OUT, or as features, for CHIASM_CACHE=OUT chiasm train mllm_smol. What is
    complete in OUT already is left alone."""

    part: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Folder of a trained image tokenizer (codes), encoder or MLLM (features)."""
    out: Positional[Annotated[Path, arg(metavar="OUT")]]
    """Folder for the shards."""
    data: str = "easy-vqa"
    """As of train."""
    shard: int = 10_000
    """Samples a shard."""
    autocast: Literal["auto", "bfloat16", "none"] = "auto"
    """Of features, as that of the stage that will use them."""

    def __call__(self) -> None:
        if self.shard < 1:
            raise ConfigError(f"--shard {self.shard}: a shard has at least one sample")
        self.use_device()
        from chiasm.recipes.precompute import PrecomputePlan
        from chiasm.recipes.run_shards import run_sharded

        plan = PrecomputePlan(self.part, self.data, self.shard, self.autocast)
        run_sharded(plan, self.out, self.array_index, self.array_count, self.ray, self.workers)
