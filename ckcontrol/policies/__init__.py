"""Policies: one file a method, its equation and paper on top. `Control(method=...)` finds them by name."""

from __future__ import annotations

from .acd import ACD
from .adacad import AdaCAD
from .arr import ARR
from .base import TAU_MAX, Decision, Policy, build, names, register, tau_from_alpha
from .cad import CAD
from .ck_plug import CKPlug
from .ck_plug_repo import CKPlugRepo
from .coiecd import COIECD
from .mixed import per_row
from .off import Off

__all__ = [
    "ACD",
    "ARR",
    "CAD",
    "COIECD",
    "TAU_MAX",
    "AdaCAD",
    "CKPlug",
    "CKPlugRepo",
    "Decision",
    "Off",
    "Policy",
    "build",
    "names",
    "per_row",
    "register",
    "tau_from_alpha",
]
