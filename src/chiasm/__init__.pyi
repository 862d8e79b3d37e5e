from chiasm import data as data
from chiasm.api import VLM as VLM
from chiasm.api import Callback as Callback
from chiasm.api import Output as Output
from chiasm.api import Run as Run
from chiasm.api import evaluate as evaluate
from chiasm.api import load as load
from chiasm.api import train as train

__version__: str
__all__ = ["VLM", "Callback", "Output", "Run", "data", "evaluate", "load", "train"]
