from chiasm.data.dataset import loader as loader

__all__ = ["loader"]
