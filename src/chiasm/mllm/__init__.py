"""Route A: a visual encoder, a projector and a pretrained language model."""
