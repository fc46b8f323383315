"""Measuring which source a model followed. May import everything in ckcontrol; nothing there imports it."""

if __name__ != "ckcontrol.eval":
    raise ImportError("this directory is installed as ckcontrol.eval; import that name")

from .items.shipped_facts import Capital as Fact
from .items.shipped_facts import load_capitals
from .metrics import Conflict, mentions, normalize, wilson

__all__ = ["Conflict", "Fact", "load_capitals", "mentions", "normalize", "wilson"]
