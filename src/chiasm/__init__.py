"""chiasm: both routes to a vision language model through the same data, trainer and evaluator."""

__version__ = "0.1.0"
