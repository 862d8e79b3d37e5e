"""Where a model is: a folder, or a repository of the Hugging Face hub as a folder in its cache."""

from __future__ import annotations

import json
import re
from pathlib import Path

from chiasm.core.errors import CheckpointError

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md")
"""What of a repository is downloaded: no pickles, no copies of the weights in other formats."""


def is_hub_id(source: str | Path) -> bool:
    """Whether a source is named as a repository of the hub, OWNER/NAME. Not where there is such a
    path, and not in a folder that exists: that is a misspelt path."""
    path = Path(source)
    return bool(_HUB_ID.fullmatch(str(source))) and not path.exists() and not path.parent.exists()


def local_folder(source: str | Path) -> Path:
    """The folder of a source; a repository of the hub is downloaded into the hub's cache, or found
    there. Raises CheckpointError for a repository that is neither reachable nor in the cache. A
    path that does not exist is returned as it is."""
    if not is_hub_id(source):
        return Path(source).expanduser()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=list(FILES)))
    except Exception as error:  # a download can fail in any way
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{source}: neither a folder here nor a repository that can be had from the Hugging "
            f"Face hub ({type(error).__name__}: {reason}); give a folder, or download it where "
            f"there is a network: hf download {source}"
        ) from None


ADAPTER = "adapter_config.json"
"""Says that a folder holds an adapter of peft."""


def checkpoint_of(folder: Path) -> Path:
    """The folder of the whole checkpoint: that of an adapter of peft is its base. Raises
    CheckpointError where the base is not there."""
    file = folder / ADAPTER
    if not file.exists():
        return folder
    base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    for place in (base, folder / str(base)):
        if base and (is_hub_id(base) or Path(place).expanduser().is_dir()):
            return local_folder(place)
    raise CheckpointError(
        f"{folder}: an adapter over '{base}', which is not there; put the base there, or write "
        f"where it is into {file.name} (base_model_name_or_path)"
    )
