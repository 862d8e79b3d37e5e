"""Vision language models that run by their own class of transformers, with its own processor.

What chiasm has no layout for it does not take apart: placeholders, sizes, token types and positions
are whatever AutoProcessor gives and the class takes, so that a new type needs no code here. Images
are processed by Pillow. No code of a repository is run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chiasm.core.errors import CheckpointError, DataError
from chiasm.core.hf_tokenizer import split_as_stated
from chiasm.core.quiet import quiet
from chiasm.core.sample import Image, Sample, Text
from chiasm.hub.formats.stock import chat_template_of, first_line, read_model
from chiasm.hub.source import checkpoint_of
from chiasm.hub.versions import write_json
from chiasm.train.checkpoint import read_json

PARTS = ("tokenizer", "image_processor", "video_processor", "feature_extractor")
"""What of a processor is saved in files of its own."""

CANNOT = "no branches of one image, no packing, no feature cache and no fused decoder"
"""What a model read this way does without."""


class GenericVLM(nn.Module):
    """A model of transformers as it is."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    @property
    def kind(self) -> str:
        """The name of its class."""
        return type(self.model).__name__


@dataclass(frozen=True)
class Prompt:
    """What eval/identity.py hashes of a prompt: its ids and all floating-point inputs."""

    input_ids: np.ndarray
    image_patches: np.ndarray
    block_ids: np.ndarray
    branch_ids: np.ndarray
    position_ids: np.ndarray
    image_grids: None = None


class GenericProcessor:
    """Conversations to the inputs of a class of transformers, by its own processor."""

    codec = SimpleNamespace(codes_per_image=0, vocabulary=None)

    def __init__(self, processor: Any):
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.tokenizer.padding_side = "left"  # replies go on from the last token of a row
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._control = {t.content for t in self.tokenizer.added_tokens_decoder.values()}

    def inputs(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        """Prompts that end where the assistant is to speak, padded on the left, in main memory.
        Raises DataError for a conversation that the processor refuses."""
        said = [self._messages(sample) for sample in samples]
        try:
            made = self.processor.apply_chat_template(
                said,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        except Exception as error:  # processors and templates fail in any way
            raise DataError(
                f"{samples[0].where}: {type(self.processor).__name__} refuses it "
                f"({type(error).__name__}: {first_line(error)})"
            ) from None
        return {name: value for name, value in made.items() if isinstance(value, Tensor)}

    def prompts(self, samples: Sequence[Sample]) -> list[tuple[Prompt, list[int]]]:
        """Each sample's prompt."""
        found = []
        for i, sample in enumerate(samples):
            inputs = self.inputs([sample])
            floats = [v.flatten().float() for v in inputs.values() if v.is_floating_point()]
            none = np.zeros(0, np.int64)
            pixels = torch.cat(floats).numpy() if floats else np.zeros(0, np.float32)
            prompt = Prompt(inputs["input_ids"][0].numpy(), pixels, none, none, none)
            found.append((prompt, [i]))
        return found

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _messages(self, sample: Sample) -> list[dict[str, Any]]:
        return [
            {"role": turn.role, "content": [self._part(sample, part) for part in turn.content]}
            for turn in sample.turns
        ]

    def _part(self, sample: Sample, part: object) -> dict[str, Any]:
        if isinstance(part, Image):
            return {"type": "image", "image": part.load()}
        if not isinstance(part, Text):
            raise DataError(f"{sample.where}: {type(part).__name__} cannot be read here")
        for token in self._control:
            if token in part.text:
                raise DataError(
                    f"{sample.where}: the text spells the control token {token}, which this "
                    "processor would take for one; reword it"
                )
        return {"type": "text", "text": part.text}


def is_generic(folder: Path) -> bool:
    """Whether a folder's config.json names a type of model that transformers itself can ask about
    images."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    file = checkpoint_of(folder) / "config.json"
    if not file.exists():
        return False
    return read_json(file).get("model_type") in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def load_generic(folder: Path) -> tuple[GenericVLM, GenericProcessor]:
    """The model in fp32 and its processor. Raises CheckpointError where either cannot be had."""
    base = checkpoint_of(folder)
    model = read_model(folder)
    own = folder if (folder / "tokenizer_config.json").exists() else base
    with quiet():
        try:
            processor = _read_processor(own, model.config.model_type)
        except Exception as error:  # classes that lack a package fail in their own way
            raise CheckpointError(
                f"{own}: transformers cannot load its processor ({first_line(error)}); fetch the "
                "repository whole, or install what the processor asks for"
            ) from None
    if getattr(processor, "image_processor", None) is None:
        raise CheckpointError(
            f"{own}: its processor is a {type(processor).__name__}, which takes no images; fetch "
            "preprocessor_config.json and processor_config.json of the repository"
        )
    if not processor.chat_template:
        processor.chat_template = chat_template_of(own) or processor.tokenizer.chat_template
    if not processor.chat_template:
        raise CheckpointError(
            f"{own}: no chat template, so how the model is asked is not known; put the one of its "
            "instruction-tuned version into chat_template.jinja"
        )
    return GenericVLM(model).eval(), GenericProcessor(processor)


def _read_processor(folder: Path, model_type: str) -> Any:
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    kind = getattr(transformers, PROCESSOR_MAPPING_NAMES.get(model_type) or "AutoProcessor")
    videos = "video_processor" in getattr(kind, "get_attributes", list)()
    if videos and importlib.util.find_spec("torchvision") is None:
        processor = without_videos(kind).from_pretrained(folder, backend="pil")
    else:
        processor = transformers.AutoProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=False
        )
    if hasattr(processor, "tokenizer"):
        split_as_stated(processor.tokenizer, folder)
    return processor


def without_videos(kind: Any) -> Any:
    """A processor's class that needs no processor of videos, which wants torchvision."""
    from transformers import AutoImageProcessor, AutoTokenizer

    parts = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}

    class WithoutVideos(kind):
        @classmethod
        def _get_arguments_from_pretrained(cls, path: Any, *_: Any, **given: Any) -> list[Any]:
            return [
                parts[name].from_pretrained(path, **given) if name in parts else None
                for name in kind.get_attributes()
            ]

        @classmethod
        def get_attributes(cls) -> list[str]:
            return kind.get_attributes()

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument is None and argument_name not in parts:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    WithoutVideos.__name__ = kind.__name__
    return WithoutVideos


def save_generic(folder: Path, model: GenericVLM, processor: GenericProcessor) -> None:
    """As the class loads it."""
    with quiet():
        model.model.save_pretrained(folder)
        own = processor.processor
        if getattr(own, "video_processor", True) is not None:
            own.save_pretrained(folder)
            return
        for part in (own.tokenizer, own.image_processor):
            part.save_pretrained(folder)
    settings = {name: value for name, value in own.to_dict().items() if name not in PARTS}
    write_json(Path(folder) / "processor_config.json", settings)
    (Path(folder) / "chat_template.jinja").write_text(own.chat_template, encoding="utf-8")
