"""One line of text that describes a sample's image, from whatever the sample has."""

from __future__ import annotations

from chiasm.core.sample import Sample

PROMPT = "Describe the image."  # what is asked of an image that comes with nothing but a caption


def caption_of(sample: Sample) -> str | None:
    """meta.caption; else the first of meta.captions; else what the assistant says; else None.

    A sample whose meta has "caption": null says that none can be known, and has none; what a reply
    that is labelled as a bad one says is no caption.
    """
    if "caption" in sample.meta:
        return sample.meta["caption"]
    captions = sample.meta.get("captions")
    if captions:
        return captions[0]
    if sample.desired is False:
        return None
    said = " ".join(t.text.strip() for t in sample.turns if t.role == "assistant").strip()
    return said or None
