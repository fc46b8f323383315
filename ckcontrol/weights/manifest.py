"""What a folder of adapters, or one adapter, says of itself: the model it is for, and which way it leads.

JSON beside PEFT's own files, which stay as PEFT writes them. Knows fingerprints; loads no adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HeadsError, WeightsError
from ..heads.fingerprint import Fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["NAME", "Manifest", "Training"]

NAME, ADAPTER = "ckcontrol-dial.json", "ckcontrol-adapter.json"
VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """A dial of adapters.

    Attributes:
        method: How PEFT merged them.
        base: The model that they are for.
        adapters: Alpha -> folder inside the dial; None is the base model without an adapter.
    """

    method: str
    base: Fingerprint
    adapters: Mapping[float, str | None]

    def write(self, folder: Path) -> None:
        """Write the manifest into a folder."""
        rows = [{"alpha": alpha, "folder": name} for alpha, name in sorted(self.adapters.items())]
        told = {"version": VERSION, "method": self.method, "base": self.base.to_dict(), "adapters": rows}
        (folder / NAME).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a dial.

        Raises:
            WeightsError: There is none, it is damaged, or an adapter that it names is missing.
        """
        path = folder / NAME
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            version, rows = told["version"], told["adapters"]
            adapters = {float(row["alpha"]): row["folder"] for row in rows}
            found = cls(str(told["method"]), Fingerprint.from_dict(told["base"]), adapters)
        except FileNotFoundError:
            raise WeightsError(
                f"{str(folder)!r} holds no {NAME}: it is no dial.", "Make one: ckcontrol weights mix."
            ) from None
        except (OSError, ValueError, KeyError, TypeError, HeadsError) as error:
            raise WeightsError(f"{str(path)!r} is damaged: {error}", "Make the dial anew.") from error
        if version != VERSION:
            raise WeightsError(f"{str(path)!r} is of version {version!r:.20}, not {VERSION}.", "Make the dial anew.")
        for alpha, name in adapters.items():
            plain = name is None or (isinstance(name, str) and Path(name).name == name)
            if not (0 <= alpha <= 1 and plain and (name is None) == (alpha == 0.5)):
                raise WeightsError(f"{str(path)!r} gives alpha {alpha!r} the folder {name!r:.60}.", "Make it anew.")
            if name is not None and not (folder / name / "adapter_model.safetensors").is_file():
                raise WeightsError(f"{str(folder / name)!r} is missing or holds no adapter.", "Make the dial anew.")
        if not {0.0, 0.5, 1.0} <= set(adapters):
            raise WeightsError(f"{str(path)!r} lacks alpha 0, 0.5 or 1.", "Make the dial anew.")
        return found

    def card(self, folder: Path) -> dict[str, Any]:
        """Return what a run says of its dial, JSON-ready: method, alphas, and a SHA-256 over its adapters' weights."""
        digest = hashlib.sha256()
        for _, name in sorted(self.adapters.items()):
            if name is not None:
                digest.update((folder / name / "adapter_model.safetensors").read_bytes())
        return {"method": self.method, "alphas": sorted(self.adapters), "sha256": digest.hexdigest()}

    def check(self, model: PreTrainedModel, folder: Path) -> None:
        """Refuse a model that the dial was not made for.

        Raises:
            WeightsError: Names what differs, and both values.
        """
        what = f"{str(folder)!r} is for another model"
        _same(self.base, Fingerprint.of(model), what, "Load the model that its adapters were trained on.")


@dataclass(frozen=True)
class Training:
    """How an adapter came to be.

    Attributes:
        toward: ``"context"`` or ``"memory"``.
        base: The model that it is for.
        settings: What `train` was called with.
        pairs: How many it was trained on.
        held_out: How many were kept from it, those of a guard that were asked included.
        steps: After how many steps the adapter was taken: fewer than asked for where more did harm.
        answers: By state, how many of the pairs held out were asked, how many were answered right before, and how many
            after.
    """

    toward: str
    base: Fingerprint
    settings: Mapping[str, Any]
    pairs: int
    held_out: int
    steps: int
    answers: Mapping[str, tuple[int, int, int]]

    def write(self, folder: Path) -> None:
        """Write it into the adapter's folder."""
        told = {"version": VERSION, **asdict(self)}
        (folder / ADAPTER).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def check(folder: Path, toward: str, base: Fingerprint) -> None:
        """Refuse an adapter that says it leads the other way or is for another model; others say nothing.

        Raises:
            WeightsError: Names what differs, and both values.
        """
        path = folder / ADAPTER
        if not path.exists():
            return
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            leads, of = str(told["toward"]), Fingerprint.from_dict(told["base"])
        except (OSError, ValueError, KeyError, TypeError, HeadsError) as error:
            raise WeightsError(f"{str(path)!r} is damaged: {error}", "Train the adapter anew.") from error
        if leads != toward:
            raise WeightsError(
                f"{str(folder)!r} leads toward {leads}, and is given as the adapter toward {toward}.",
                "Give the adapter toward context first, then that toward memory.",
            )
        what = f"{str(folder)!r} is an adapter of another model"
        _same(of, base, what, "Give the model that it was trained on.")


def _same(there: Fingerprint, here: Fingerprint, what: str, hint: str) -> None:
    if (found := there.differs(here)) is not None:
        name, mine, theirs = found
        raise WeightsError(f"{what}: {name} is {mine!r} there and {theirs!r} here.", hint)
