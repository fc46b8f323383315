"""A folder for the Hugging Face Hub, in the form of transformers' custom generation repositories, and its three files.

Who has that folder, or its name on the Hub, steers by ``model.generate(custom_generate=...)``. Its code is a few lines
that call `decoding_loop` of the installed library. Knows texts; knows no model.
"""

from __future__ import annotations

from pathlib import Path

from . import __version__

__all__ = ["FILES", "export_hub"]

_GENERATE = '''"""CK-PLUG and its relatives for model.generate(custom_generate=...), by the package ckcontrol."""

from __future__ import annotations

from typing import Any

from ckcontrol import Control, decoding_loop

OURS = ("parametric_mask", "vocab_size", "streamer", "recorder", "seed", "penalty_scope", "tokenizer", "stop")


def generate(model: Any, parametric_ids: Any, method: str = "ck-plug", alpha: float | None = None, **given: Any) -> Any:
    """Decode between two prompts: the inputs, which hold the passages, and `parametric_ids`, which do not.

    Args:
        model: The model whose ``generate`` was called.
        parametric_ids: The prompts without passages, [B, L] int64, left-padded.
        method: A method of ckcontrol, e.g. "ck-plug", "cad", "dial".
        alpha: 0 context, 0.5 the unmodified model, 1 memory; None is the method's own default.
        **given: ``parametric_mask``, ``tokenizer``, ``seed``, ``stop`` and the like, as for
            `ckcontrol.decoding_loop`; ``params``, further parameters of the method; and what ``generate`` takes.
    """
    control = Control(method, alpha, **(given.pop("params", None) or {}))
    ours = {name: value for name in OURS if (value := given.pop(name, None)) is not None}
    loop = decoding_loop(control, parametric_ids=parametric_ids, **ours)
    return model.generate(**given, custom_generate=loop)
'''

_README = """---
library_name: transformers
license: apache-2.0
tags:
  - custom_generate
---

# A dial between memory and passages

A custom generation method for decoder-only models: one dial per request between what the model remembers (*parametric*)
and what the passages in its prompt say (*contextual*). Methods: CK-PLUG, CAD and others of the package ckcontrol, which
does the work; install it from a clone: `pip install /path/to/clone`.

```python
from ckcontrol import build_pair
import torch

pair = build_pair(tokenizer, "How long is the Tellin?", ["The Tellin is 88 km long."])
ids = model.generate(
    input_ids=torch.tensor([pair.contextual]),
    parametric_ids=torch.tensor([pair.parametric]),
    method="ck-plug",
    alpha=0.3,
    max_new_tokens=20,
    custom_generate="ck-plug",  # this folder, or its name on the Hub
    trust_remote_code=True,  # transformers' own condition; read custom_generate/generate.py, it is short
)
```

## Arguments

- `parametric_ids`, `parametric_mask`: the prompts without passages, left-padded; one per prompt with them.
- `method` ("ck-plug") and `alpha`: 0 trusts the passages, 0.5 is the unmodified model, 1 trusts memory.
- `params`: further parameters of the method, as a mapping.
- `tokenizer`, `stop`, `seed`, `streamer`, `recorder`, `penalty_scope`, `vocab_size`: as for `ckcontrol.decoding_loop`.
- What `generate` takes otherwise; beam search, assistants and caches that are filled are refused.

It returns what `generate` returns.
"""

FILES = {
    "custom_generate/generate.py": _GENERATE,
    "custom_generate/requirements.txt": f"ckcontrol>={__version__}\n",
    "README.md": _README,
}


def export_hub(folder: str | Path) -> list[Path]:
    """Write the folder; files of these names are replaced, others left alone.

    Returns:
        The files.

    Raises:
        OSError: It cannot be written.
    """
    written = []
    for name, text in FILES.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written
