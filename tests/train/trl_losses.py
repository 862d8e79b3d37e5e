"""Losses of trl's own trainers, for test_trl.py: run by a Python that has trl, with JSON of
log-probabilities in, losses out. Only the model's forward pass and the logging are stood in for."""

import json
import sys
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from trl import DPOTrainer, GRPOTrainer, KTOTrainer


class Trainer(SimpleNamespace):
    """What the loss functions read of a trainer besides their settings."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def trainer(**settings: Any) -> Trainer:
    same = lambda value: value  # noqa: E731
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather_for_metrics=same, gather=same, num_processes=1,
        reduce=lambda value, reduction: value, sync_gradients=True, unwrap_model=same,
    )  # fmt: skip
    return Trainer(
        accelerator=accelerator, model=SimpleNamespace(training=True), aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
        **settings,
    )  # fmt: skip


def model_of(log_probs: torch.Tensor) -> Any:
    zeros = torch.zeros_like(log_probs)
    outputs = SimpleNamespace(
        log_probs=log_probs, entropy=zeros, mean_logits=zeros, logits=zeros[..., None],
        aux_loss=None,
        is_top1=zeros > 0, log_sum_sq_probs=zeros,
    )  # fmt: skip
    return lambda **_: outputs


def batch_of(mask: torch.Tensor) -> dict:
    """Sequences of one prompt token and what the mask says."""
    whole = torch.cat([torch.zeros_like(mask[:, :1]), mask], 1)
    return {"input_ids": torch.ones_like(whole), "attention_mask": torch.ones_like(whole),
            "completion_mask": whole}  # fmt: skip


def dpo(given: dict) -> float:
    own = trainer(
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
        loss_types=[given["loss"]], loss_weights=[1.0], beta=given["beta"],
        label_smoothing=given["smoothing"], use_weighting=False,
    )  # fmt: skip
    mask = torch.tensor(given["mask"])
    inputs = batch_of(mask)
    half = len(mask) // 2
    reference = torch.tensor(given["reference"])
    inputs |= {"ref_chosen_logps": reference[:half], "ref_rejected_logps": reference[half:]}
    log_probs = torch.tensor(given["log_probs"]) * mask
    if given["loss"] == "robust":
        raise ValueError("not compared")
    return float(DPOTrainer._compute_loss(own, model_of(log_probs), inputs, False))


def kto(given: dict) -> float:
    own = trainer(
        precompute_ref_logps=True, calculate_KL=True, loss_type="kto", beta=given["beta"],
        desirable_weight=given["weights"][0], undesirable_weight=given["weights"][1],
        _compute_kl_logps=lambda *_: torch.tensor(given["unrelated"]),
    )  # fmt: skip
    mask = torch.tensor(given["mask"])
    inputs = batch_of(mask) | {
        "label": torch.tensor(given["label"]),
        "ref_logps": torch.tensor(given["reference"]),
        "ref_KL_logps": torch.tensor(given["unrelated_reference"]),
    }
    log_probs = torch.tensor(given["log_probs"]) * mask
    return float(KTOTrainer._compute_loss(own, model_of(log_probs), inputs, False))


def grpo(given: dict) -> float:
    log_probs, mask = torch.tensor(given["log_probs"]), torch.tensor(given["mask"])
    own = trainer(
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, beta=given["kl"],
        importance_sampling_level=given["ratio"], loss_type=given["loss"],
        epsilon_low=given["clip"][0], epsilon_high=given["clip"][1], use_vllm=False,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        current_gradient_accumulation_steps=1, max_completion_length=given["longest"],
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            log_probs, torch.zeros_like(log_probs), None
        ),
    )  # fmt: skip
    ones = torch.ones(len(mask), 1, dtype=torch.long)
    inputs = {
        "prompt_ids": ones, "prompt_mask": ones, "completion_ids": torch.ones_like(mask),
        "completion_mask": mask, "advantages": torch.tensor(given["advantages"]),
        "old_per_token_logps": torch.tensor(given["old"]),
        "ref_per_token_logps": torch.tensor(given["reference"]),
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    return float(GRPOTrainer._compute_loss(own, None, inputs))


if __name__ == "__main__":
    given = json.load(sys.stdin)
    kinds = {"dpo": dpo, "kto": kto, "grpo": grpo}
    print("LOSSES", json.dumps([kinds[one["kind"]](one) for one in given]))
