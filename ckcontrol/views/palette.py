"""Every colour: themes, the one scale of both views, the inks of drawings, and the CSS rules that name them.

Knows numbers, hex colours and CSS; knows no record and no drawing. The scale diverges from gain 0. Blue: the passages
made the model surer. Orange: they confused it. Its ends are close to Okabe and Ito's sky blue and orange, which every
common colour blindness tells apart; text on every step has a contrast of at least 4.5:1. Colour is never alone:
switched tokens are underlined and marked, and the series of a chart differ by mark and by a written name.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "DARK",
    "DARK_INKS",
    "DARK_SCALE",
    "LIGHT",
    "LIGHT_INKS",
    "LIGHT_SCALE",
    "MIDDLE",
    "SATURATION",
    "SERIES",
    "STEPS",
    "Theme",
    "contrast",
    "ink_rules",
    "palette_rules",
    "scale_rules",
    "step",
    "svg_rules",
]

STEPS = 4  # on each side of zero
SATURATION = 3.0  # nats


def _mix(surface: str, end: str, share: float) -> str:
    """Blend two #rrggbb colours; share 0 is `surface`, 1 is `end`."""
    pairs = ((int(surface[i : i + 2], 16), int(end[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


@dataclass(frozen=True)
class Theme:
    """Colours of one theme, as #rrggbb.

    Attributes:
        surface: Background.
        panel: Background of cards and table heads.
        text: Text on every background, including the scale's.
        muted: Secondary text.
        line: Rules and borders.
        warn: Text of warnings.
        surer: Far end of the positive side.
        confused: Far end of the negative side.
    """

    surface: str
    panel: str
    text: str
    muted: str
    line: str
    warn: str
    surer: str
    confused: str

    def scale(self) -> dict[int, str]:
        """Return the background of each step, from -STEPS (confused) to STEPS (surer); 0 is the surface."""
        return {
            s: _mix(self.surface, self.surer if s > 0 else self.confused, abs(s) / STEPS)
            for s in range(-STEPS, STEPS + 1)
        }


LIGHT = Theme("#ffffff", "#f4f5f7", "#16181d", "#565c66", "#d5d9e0", "#8a3b00", "#56b4e9", "#eda31e")
DARK = Theme("#14161a", "#1e2127", "#f2f3f5", "#aab1bd", "#3a4049", "#ffb45c", "#0b6cad", "#9c4f00")

# For bars, which stand on a background we do not choose: at least 3:1 on white and on black.
MIDDLE = {"surer": "#0072b2", "confused": "#d55e00"}


def step(gain: float | None) -> int:
    """Return the step of the scale for a gain in nats; None counts as 0, ±3 nats and beyond saturate."""
    if gain is None or gain != gain:
        return 0
    share = max(-1.0, min(1.0, gain / SATURATION))
    return round(share * STEPS)


def contrast(one: str, other: str) -> float:
    """Return the WCAG contrast ratio of two #rrggbb colours, 1 to 21."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# --- inks: the colours of drawings, by purpose ---

_PLAIN = ("surface", "panel", "text", "muted", "line", "warn")
_LIGHT_SERIES = ("#0067a8", "#b8430a", "#00714f", "#8e3f8a", "#7a5c00", "#5b4bc4", "#7a4a2a", "#b3174f")
_DARK_SERIES = ("#5cb8f0", "#ff9450", "#45cb9b", "#e59ad6", "#dcc04a", "#b4a5ff", "#d2a98a", "#ff8aa8")
SERIES = len(_LIGHT_SERIES)


def _inks(theme: Theme, series: tuple[str, ...], up: str, down: str) -> dict[str, str]:
    plain = {name: getattr(theme, name) for name in _PLAIN}
    # Memory and context are the two sources; up and down are better and worse than the unmodified model.
    named = {"memory": series[5], "context": series[2], "up": up, "down": down}
    return plain | named | {f"s{i}": colour for i, colour in enumerate(series)}


# Lines and marks have a contrast of at least 3:1 with their background, text 4.5:1.
LIGHT_INKS = _inks(LIGHT, _LIGHT_SERIES, "#0067a8", "#a33f00")
DARK_INKS = _inks(DARK, _DARK_SERIES, "#6cc0f3", "#ffa35c")
# The scale as inks, g0 (confused) to g8 (surer): for drawings of gains alone.
LIGHT_SCALE, DARK_SCALE = ({f"g{s + STEPS}": c for s, c in theme.scale().items()} for theme in (LIGHT, DARK))


# --- as CSS ---


def _themed(light: str, dark: str) -> str:
    return f".ck{{{light}}}\n@media (prefers-color-scheme:dark){{.ck{{{dark}}}}}"


def palette_rules() -> str:
    """Return the variables of both themes: ``--ck-text`` and the like, and the scale as ``--ck-s0`` to ``--ck-s8``."""

    def variables(theme: Theme) -> str:
        plain = [f"--ck-{name}:{getattr(theme, name)}" for name in _PLAIN]
        return ";".join(plain + [f"--ck-s{shade + STEPS}:{colour}" for shade, colour in theme.scale().items()])

    return _themed(f"color-scheme:light dark;{variables(LIGHT)}", variables(DARK))


def ink_rules() -> str:
    """Return the variables of the inks and the rules that colour drawings inside a page."""
    light, dark = (";".join(f"--ev-{n}:{c}" for n, c in inks.items()) for inks in (LIGHT_INKS, DARK_INKS))
    return f"{_themed(light, dark)}\n{svg_rules({name: f'var(--ev-{name})' for name in LIGHT_INKS}, '.ck ')}"


def scale_rules() -> str:
    """Return the rules that colour drawings on the scale inside a page, by the variables that every page has."""
    inks = {name: f"var(--ck-{name})" for name in ("text", "muted", "line")}
    return svg_rules(inks | {f"g{shade}": f"var(--ck-s{shade})" for shade in range(2 * STEPS + 1)}, ".ck ")


def svg_rules(inks: dict[str, str], scope: str = "") -> str:
    """Return the rules that colour drawings: a fill class and a stroke class per ink."""
    return "".join(
        f"{scope}.ev-f-{name}{{fill:{colour}}}{scope}.ev-s-{name}{{stroke:{colour}}}" for name, colour in inks.items()
    )
