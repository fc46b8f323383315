"""One file per method, its equation and paper on top; `Control(method=...)` finds them by name."""

from __future__ import annotations

from .acd import ACD
from .adacad import AdaCAD
from .answer_policy import (
    AnswerPolicy,
    Evidence,
    check_drafts,
    check_in_weights,
    draft_policies,
    stand_in,
    surprise,
    token_policy,
)
from .arr import ARR
from .base import TAU_MAX, Decision, Policy, build, names, register, tau_from_alpha
from .cad import CAD
from .ck_plug import CKPlug
from .ck_plug_repo import CKPlugRepo
from .coiecd import COIECD
from .dial import Dial
from .grd import GRD
from .idle_drafts import ABSTENTIONS, FUNCTION_WORDS, first_sentence, idle, read_drafts, sentence_end
from .nwcad import NWCAD
from .off import Off
from .per_row import PerRow, per_row
from .source_answers import SourceDraft, Weighed, weigh
from .trustmargin import TrustMargin
from .weights import Weights

__all__ = [
    "ABSTENTIONS",
    "ACD",
    "ARR",
    "CAD",
    "COIECD",
    "FUNCTION_WORDS",
    "GRD",
    "NWCAD",
    "TAU_MAX",
    "AdaCAD",
    "AnswerPolicy",
    "CKPlug",
    "CKPlugRepo",
    "Decision",
    "Dial",
    "Evidence",
    "Off",
    "PerRow",
    "Policy",
    "SourceDraft",
    "TrustMargin",
    "Weighed",
    "Weights",
    "build",
    "check_drafts",
    "check_in_weights",
    "draft_policies",
    "first_sentence",
    "idle",
    "names",
    "per_row",
    "read_drafts",
    "register",
    "sentence_end",
    "stand_in",
    "surprise",
    "tau_from_alpha",
    "token_policy",
    "weigh",
]
