"""What is wrong with a folder that no model could be loaded from, and what to do about it.

Looked at after a loader has failed, so nothing that loads is ever refused here. Knows the files of a checkpoint; knows
no loader. Nothing is unpickled or run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["fault"]

_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")
_AGAIN = "Copy or download it again."
_WRITE = "Give a folder that save_pretrained of a model and of its tokenizer wrote."


def fault(folder: Path, reason: str) -> tuple[str, str]:
    """Return what is wrong with a folder, as the rest of a sentence that begins with it, and the remedy.

    Args:
        folder: It exists.
        reason: What the loader said; told where the files look sound.

    Example:
        >>> import tempfile
        >>> fault(Path(tempfile.mkdtemp()), "no such file")[0]
        'is empty'
    """
    sound = (f"could not be loaded: {reason}", _WRITE)
    if (folder / "adapter_config.json").is_file():  # what its base model lacks is not in this folder
        return sound
    return _config(folder) or _weights(folder) or _tokenizer(folder) or sound


def _config(folder: Path) -> tuple[str, str] | None:
    if not any(folder.iterdir()):
        return "is empty", _WRITE
    if not (folder / "config.json").is_file():
        return "has no config.json", _WRITE
    config = _json(folder / "config.json")
    if not isinstance(config, dict):
        return f"has a config.json that is no JSON object ({_size(folder / 'config.json')})", _AGAIN
    if not config.get("model_type"):
        return "has a config.json without model_type, so nobody can tell what model it is", _WRITE
    return None


def _weights(folder: Path) -> tuple[str, str] | None:
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        named = _json(index)
        shards = named.get("weight_map") if isinstance(named, dict) else None
        if not isinstance(shards, dict):
            return f"has a {index.name} that names no weights ({_size(index)})", _AGAIN
        files = [folder / name for name in sorted({*map(str, shards.values())})]
    for file in files:
        if not file.is_file():
            return f"lacks {file.name}, which {index.name} names", _AGAIN
        if fault := _safetensors(file):
            return f"has a damaged {file.name}: {fault}", _AGAIN
    if files:
        return None
    others = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in folder.glob(kind))
    only = f", only {others[0]}" if others else ""
    return f"has no weights as safetensors{only}", "Save the model as safetensors: save_pretrained does so."


def _safetensors(file: Path) -> str | None:
    """Return how a file differs from what its own header says; None where it does not."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 0 < length <= size - 8:
            return f"its {size:,} bytes end before its header does"
        try:
            tensors = json.loads(opened.read(length))
            ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
            wanted = 8 + length + max(ends, default=0)
        except (ValueError, LookupError, TypeError, AttributeError):
            return "its header cannot be read"
    return None if size == wanted else f"it has {size:,} bytes, and its header speaks of {wanted:,}"


def _tokenizer(folder: Path) -> tuple[str, str] | None:
    found = [file for kind in _TOKENIZERS for file in folder.glob(kind)]
    if not found:
        return "has no tokenizer", "Save it there: tokenizer.save_pretrained(folder)."
    for file in [*found, folder / "tokenizer_config.json"]:
        if file.suffix == ".json" and file.is_file() and not isinstance(_json(file), dict):
            return f"has a {file.name} that is no JSON object ({_size(file)})", _AGAIN
    return None


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _size(file: Path) -> str:
    return f"{file.stat().st_size:,} bytes"
