"""What other libraries call the things that chiasm's fields and options are for: what a hint names
before it looks for a similar spelling."""

from __future__ import annotations

from collections.abc import Sequence

SYNONYMS: dict[str, tuple[str, ...]] = {
    "lr": ("learning_rate", "base_lr", "peak_lr", "max_lr"),
    "steps": ("max_steps", "num_steps", "total_steps", "train_steps", "iters", "max_iters"),
    "batch_tokens": ("batch_size", "micro_batch_size", "per_device_train_batch_size", "bsz"),
    "batch_images": ("batch_size", "micro_batch_size", "per_device_train_batch_size", "bsz"),
    "gradient_accumulation_steps": ("grad_accum", "accumulation_steps", "grad_accum_steps",
                                    "gradient_accumulation", "accumulate_grad_batches"),
    "max_grad_norm": ("grad_clip", "clip_grad_norm", "gradient_clip_val", "gradient_clipping"),
    "warmup_ratio": ("warmup_steps", "num_warmup_steps", "lr_warmup"),
    "min_lr_ratio": ("min_lr", "lr_min", "final_lr"),
    "schedule": ("lr_scheduler", "lr_scheduler_type", "scheduler", "lr_schedule"),
    "gradient_checkpointing": ("activation_checkpointing", "checkpoint_activations", "remat"),
    "optimizer": ("optim", "optimiser"),
    "autocast": ("mixed_precision", "precision", "bf16", "fp16", "amp"),
    "compile": ("torch_compile", "use_compile"),
    "ema": ("ema_decay", "use_ema"),
    "objectives": ("objective", "loss", "task", "tasks"),
    "save_every": ("save_steps", "checkpoint_every", "save_interval"),
    "evaluate_every": ("eval_steps", "eval_every", "eval_interval", "val_check_interval"),
    "log_every": ("logging_steps", "log_interval", "log_every_n_steps"),
    "keep_checkpoints": ("save_total_limit", "max_checkpoints", "keep_last"),
    "loggers": ("report_to", "logger", "wandb", "tensorboard"),
    "data": ("dataset", "dataset_name", "train_data", "data_path", "train_file"),
    "seed": ("random_seed", "manual_seed"),
    "augment.hflip": ("random_flip", "horizontal_flip"),
    "ranks.fsdp_min_params": ("fsdp", "zero_stage", "deepspeed", "full_shard"),
    "ranks.tensor_parallel": ("tp", "tp_size", "tensor_model_parallel_size"),
    "hidden_size": ("d_model", "dim", "embed_dim", "n_embd", "model_dim"),
    "width": ("hidden_size", "d_model", "dim", "embed_dim", "n_embd"),
    "intermediate_size": ("ffn_dim", "ffn_hidden_size", "mlp_dim", "d_ff"),
    "hidden": ("hidden_size", "intermediate_size"),
    "layers": ("num_layers", "num_hidden_layers", "n_layer", "n_layers", "depth"),
    "heads": ("num_heads", "num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_kv_heads"),
    "max_length": ("max_seq_len", "max_seq_length", "seq_len", "model_max_length",
                   "context_length", "max_position_embeddings", "block_size"),
    "text_vocabulary": ("vocab_size", "vocabulary_size"),
    "vocabulary": ("vocab_size", "vocabulary_size"),
    "language_model": ("llm", "text_model", "lm", "base_model", "model_name_or_path", "backbone"),
    "encoder": ("vision_tower", "vision_encoder", "image_encoder", "vision_model"),
    "projector": ("mm_projector", "connector", "multi_modal_projector"),
    "tokenizer": ("image_tokenizer", "vqgan", "vq_model"),
    "quantizer": ("codebook", "vq"),
    "cfg_dropout": ("uncond_prob", "class_dropout_prob", "caption_dropout", "cond_drop_prob"),
    "lora.rank": ("lora_r", "lora_rank"),
    "lora.alpha": ("lora_alpha",),
    "lora.targets": ("target_modules", "lora_target_modules"),
    "rank": ("r",),
    "targets": ("target_modules",),
}  # fmt: skip
"""A field, or the end of its dotted name -> names it has elsewhere."""

ADVICE = {
    "world_size": "the number of processes is torchrun's: torchrun --nproc-per-node N -m chiasm",
    "num_gpus": "the number of processes is torchrun's: torchrun --nproc-per-node N -m chiasm",
    "epochs": "a stage is as long as its steps; chiasm plan RECIPE says how many samples that is",
    "num_train_epochs": "a stage is as long as its steps: set stages.N.steps",
    "num_workers": "the number of threads that read ahead is chosen by the cores of the machine",
    "output_dir": "the folder of a run is --out (out= in Python)",
    "resume_from_checkpoint": "a run is continued by --resume (resume= in Python)",
    "device": "the device is --device (device= in Python), or CHIASM_DEVICE",
}
"""Names of what no field sets -> what does."""


def meant(word: str, known: Sequence[str]) -> str | None:
    """Which of the known (dotted) names a word of other libraries means: one beside where it was
    typed, else the first; None where it means none."""
    parent, _, last = word.replace("-", "_").rpartition(".")
    ours = [last, *(name for name, theirs in SYNONYMS.items() if last in theirs)]
    found = [k for name in ours for k in known if k == name or k.endswith(f".{name}")]
    beside = [k for k in found if parent and k.startswith(f"{parent}.")]
    return next(iter([*beside, *found]), None)


def advice(word: str) -> str | None:
    """What sets it instead, where no field does."""
    return ADVICE.get(word.replace("-", "_").rpartition(".")[2])
