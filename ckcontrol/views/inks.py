"""The colours of charts by purpose, light and dark, and their style sheet."""

from __future__ import annotations

from ckcontrol.views.palette import DARK, LIGHT, Theme

__all__ = ["DARK_INKS", "FONT", "LIGHT_INKS", "SERIES", "svg_rules"]


FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans','DejaVu Sans',sans-serif"


_LIGHT_SERIES = ("#0067a8", "#b8430a", "#00714f", "#8e3f8a", "#7a5c00", "#5b4bc4", "#7a4a2a", "#b3174f")


_DARK_SERIES = ("#5cb8f0", "#ff9450", "#45cb9b", "#e59ad6", "#dcc04a", "#b4a5ff", "#d2a98a", "#ff8aa8")


SERIES = len(_LIGHT_SERIES)


def _inks(theme: Theme, series: tuple[str, ...], up: str, down: str) -> dict[str, str]:
    plain = {name: getattr(theme, name) for name in ("surface", "panel", "text", "muted", "line", "warn")}
    # Memory and context are the two sources; up and down are better and worse than the unmodified model.
    named = {"memory": series[5], "context": series[2], "up": up, "down": down}
    return plain | named | {f"s{i}": colour for i, colour in enumerate(series)}


LIGHT_INKS = _inks(LIGHT, _LIGHT_SERIES, "#0067a8", "#a33f00")


DARK_INKS = _inks(DARK, _DARK_SERIES, "#6cc0f3", "#ffa35c")


def svg_rules(inks: dict[str, str], scope: str = "") -> str:
    """Return the rules that colour drawings: fill and stroke classes, one of each an ink."""
    return "".join(
        f"{scope}.ev-f-{name}{{fill:{colour}}}{scope}.ev-s-{name}{{stroke:{colour}}}" for name, colour in inks.items()
    )
