"""The one colour scale of both views: diverging, centred at gain 0, blue against orange.

Knows numbers and hex colours only. Blue: the passages made the model surer. Orange: they confused it. The
ends are close to Okabe and Ito's sky blue and orange, told apart with every common colour blindness; text on
every step has a contrast of at least 4.5:1. Colour is never alone: switched tokens are underlined and marked.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DARK", "LIGHT", "MIDDLE", "STEPS", "Theme", "contrast", "step"]

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
        text: Text on every background, the scale's included.
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
