"""Whether a reader sees an element of a page: by its attributes, its inline style, and its sheets' simple rules.

A simple rule is one for a tag, a class or an id, or for a tag with a class or id. Other selectors, media queries,
linked sheets and scripts are not followed; text in the colour of its background is not noticed. Knows no tree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Sheet", "gone", "veiled"]

COMMENT = re.compile(r"/\*(?:(?!\*/).)*(?:\*/|\Z)", re.DOTALL)
ESCAPE = re.compile(r"\\([0-9a-f]{1,6})\s?", re.IGNORECASE)
SIMPLE = re.compile(r"([a-z][a-z0-9]*)?([.#][\w-]+)?")
NAMES = re.compile(r"[.#][\w-]+")
LENGTH = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(px|pt|r?em|ex|ch|cm|mm|in|pc|%|v[wh])?")
PIXELS = {"px": 1.0, "pt": 1.3, "pc": 16.0, "cm": 38.0, "mm": 3.8, "in": 96.0, "ex": 8.0, "ch": 8.0}  # others: 10 to 16
# Of what a browser would not understand the declaration before it stays in force.
VALID = {
    "display": re.compile(
        r"none|block|inline|contents|flow-root|list-item|inherit|initial|unset|revert|ruby|math|(inline-)?(block|flex|grid|table)"
        r"|table-[a-z-]+|-webkit-(inline-)?(box|flex)"
    ),
    "visibility": re.compile(r"visible|hidden|collapse|inherit|initial|unset|revert"),
    "opacity": re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?%?|inherit|initial|unset|revert"),
    "font-size": re.compile(LENGTH.pattern + r"|[a-z-]+|(calc|clamp|min|max|var)\(.*\)"),
}
SHOWING = ("display", "visibility", "opacity", "font-size")
LONGEST = 200  # characters of a value that is looked at: patterns over longer ones could take long
BESIDE = 900  # pixels out of the window; half a window is how dialogs are put in the middle


class Value(NamedTuple):
    """What a property is set to, in lower case, and whether it is ``!important``."""

    text: str
    important: bool


Style = dict[str, Value]


class Sheet:
    """The simple rules of a page's style sheets."""

    def __init__(self, css: str) -> None:
        self._rules: dict[str, Style] = {}
        shown: set[tuple[str, str]] = set()  # what a rule that is not simple may show again
        for selectors, body in _rules(css):
            style = _declarations(body)
            for selector in selectors.split(","):
                match = SIMPLE.fullmatch(selector.strip())
                if match and match[0]:
                    _merge(self._rules.setdefault(match[0], {}), style)
                elif selector.strip():
                    last = re.split(r"[\s>+~]+", selector.strip())[-1]
                    if ":" not in last:
                        shown.update(
                            (name, key) for key in SHOWING if _shows(key, style) for name in NAMES.findall(last)
                        )
        for name, key in shown:
            self._rules.get(name, {}).pop(key, None)

    def style(self, tag: str, attributes: Mapping[str, Any]) -> Style:
        """Return what counts for an element: the browser's own rules, the sheet's by weight, then the inline style."""
        style: Style = {}
        if "hidden" in attributes or "popover" in attributes or (tag == "dialog" and "open" not in attributes):
            style["display"] = Value("none", False)
        if self._rules:
            classes = attributes.get("class") or []
            named = [
                f".{name}"
                for name in (classes.lower().split() if isinstance(classes, str) else map(str.lower, classes))
            ]
            own = [f"#{str(attributes['id']).lower()}"] if attributes.get("id") else []
            for key in [tag, *named, *(tag + name for name in named), *own, *(tag + name for name in own)]:
                if key in self._rules:
                    _merge(style, self._rules[key])
        if attributes.get("style"):
            _merge(style, _declarations(str(attributes["style"])))
        if str(attributes.get("aria-hidden", "")).strip().lower() == "true":
            style["display"] = Value("none", True)
        return style


def gone(style: Style) -> bool:
    """Return whether an element and all that is in it is not seen."""
    if not style:
        return False
    got = {name: value.text for name, value in style.items()}
    if got.get("display") == "none" or got.get("content-visibility") == "hidden" or _faint(got.get("opacity", "")):
        return True
    position = got.get("position", "static")
    placed = position in ("absolute", "fixed")
    sides = [_pixels(got.get(side, "")) for side in ("left", "right", "top", "bottom") if position != "static"]
    sides += map(_pixels, got.get("inset", "").split() if position != "static" else [])
    margins = [_pixels(got.get(name, "")) for name in ("margin-left", "margin-top", "text-indent")]
    margins += map(_pixels, got.get("margin", "").split())
    clips = " ".join(got.get(name, "") for name in ("overflow", "overflow-x", "overflow-y")).split()
    cut = "hidden" in clips or "clip" in clips
    box = [_pixels(got.get(name, "")) for name in ("width", "height", "max-width", "max-height")]
    if any(value is not None and value <= -BESIDE for value in sides + margins):
        return True
    if any(value is not None and value >= 5 * BESIDE for value in [*sides[:1], margins[0], margins[2]]):
        return True
    if cut and (any(value is not None and value <= 1 for value in box) or (margins[2] or 0) >= BESIDE):
        return True
    return (placed and _no_area(got.get("clip", ""))) or _no_area(got.get("clip-path", "")) or _moved(got)


def veiled(style: Style, before: frozenset[str]) -> frozenset[str]:
    """Return which inherited properties keep text unseen inside an element, given those of the element around it."""
    if not style:
        return before
    now = set(before)
    for name in ("visibility", "font-size", "color", "-webkit-text-fill-color"):
        value = style[name].text if name in style else "inherit"
        if value == "inherit" or (value == "unset"):
            continue
        size = LENGTH.fullmatch(value) if name == "font-size" else None
        if (
            name == "font-size"
            and name in before
            and (value in ("larger", "smaller") or (size and size[2] in _OF_FONT))
        ):
            continue
        hides = {
            "visibility": value in ("hidden", "collapse"),
            "font-size": size is not None
            and float(size[1]) * PIXELS.get(size[2] or "px", 10) <= (9 if size[2] == "%" else 1),
            "color": _clear(value),
            "-webkit-text-fill-color": _clear(value),
        }
        (now.add if hides[name] else now.discard)(name)
    return frozenset(now)


_OF_FONT = ("em", "ex", "ch", "%")


def _shows(name: str, style: Style) -> bool:
    one = {name: style[name]} if name in style else {}
    return bool(one) and not gone(one) and not veiled(one, frozenset())


def _rules(css: str) -> list[tuple[str, str]]:
    """Return selectors and bodies of the rules outside of any at-rule, in one pass."""
    found: list[tuple[str, str]] = []
    depth, selector, inside, before = 0, "", False, ""
    for piece in re.split(r"([{}])", COMMENT.sub("", css.replace("<!--", "").replace("-->", "")).lower()):
        if piece == "{":
            depth += 1
            if depth == 1:
                selector = _plain(before).rsplit(";", 1)[-1].strip()
                inside = not selector.startswith("@")
        elif piece == "}":
            if depth == 1 and inside:
                found.append((selector, before))
            depth = max(0, depth - 1)
        before = piece
    if depth == 1 and inside:  # what is not closed ends with the sheet
        found.append((selector, before))
    return found


def _plain(css: str) -> str:
    return ESCAPE.sub(lambda match: chr(min(int(match[1], 16), 0x10FFFF)), css).lower() if "\\" in css else css


def _declarations(css: str) -> Style:
    style: Style = {}
    for part in _plain(COMMENT.sub("", css).lower()).split(";"):
        name, _, text = (piece.strip() for piece in part.partition(":"))
        value, important, _ = text.partition("!")
        value = " ".join(value.split())
        if len(value) > LONGEST:
            continue
        if name == "font":  # its size is the token with a unit, or a nought
            sizes = [LENGTH.fullmatch(token.partition("/")[0]) for token in value.split()]
            size = next((found for found in sizes if found and (found[2] or not float(found[1]))), None)
            name, value = ("font-size", size[0]) if size else (name, value)
        if name and value and (name not in VALID or VALID[name].fullmatch(value)):
            _merge(style, {name: Value(value, bool(important))})
    return style


def _merge(into: Style, style: Style) -> None:
    for name, value in style.items():
        if value.important or name not in into or not into[name].important:
            into[name] = value


def _pixels(value: str) -> float | None:
    match = LENGTH.fullmatch(value)
    if not match:
        return None
    unit = match[2] or "px"
    return float(match[1]) * PIXELS.get(unit, 16 if unit.endswith("em") else 10)


def _faint(value: str) -> bool:
    if not value or value[-1].isalpha():
        return False
    return float(value.rstrip("%")) <= (5 if value.endswith("%") else 0.05)


def _no_area(value: str) -> bool:
    kind, _, rest = value.partition("(")
    sizes = [(number, unit) for number, unit in LENGTH.findall(rest.split(")")[0])]
    if kind == "inset":
        return any(unit == "%" and float(number) >= 50 for number, unit in sizes)
    return kind in ("rect", "circle", "ellipse", "polygon") and bool(sizes) and _small(kind, sizes)


def _small(kind: str, sizes: list[tuple[str, str]]) -> bool:
    return all(float(number) <= 1 for number, _ in (sizes[:1] if kind in ("circle", "ellipse") else sizes))


def _moved(got: Mapping[str, str]) -> bool:
    if re.search(r"\bopacity\(0*\.?0*%?\)", got.get("filter", "")) or got.get("scale") in ("0", "0%"):
        return True
    for kind, inside in re.findall(r"(scale[xy3d]*|translate[xy3d]*)\(([^()]*)\)", got.get("transform", "")):
        values = [value for value in map(_pixels, re.split(r"[\s,]+", inside.strip())) if value is not None]
        if any(value == 0 for value in values[:2]) if kind.startswith("scale") else any(v <= -BESIDE for v in values):
            return True
    return False


def _clear(value: str) -> bool:
    if value == "transparent" or re.fullmatch(r"#(...0|.{6}00)", value):
        return True
    return bool(re.fullmatch(r"(rgb|hsl)a?\(.*[,/]\s*0*\.?0*%?\s*\)", value)) and (
        "/" in value or value.count(",") == 3
    )
