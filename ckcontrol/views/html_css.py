"""The style sheet of the HTML views, as one string: light and dark, narrow and wide, print, forced colours.

Knows the palette. Every selector starts with a ``.ck`` class, so a fragment leaves its notebook alone.
No script, no font, no image, no address: the page's policy (``default-src 'none'``) would refuse them.
"""

from __future__ import annotations

from .palette import DARK, LIGHT, STEPS, Theme

__all__ = ["stylesheet"]


def _variables(theme: Theme) -> str:
    names = ("surface", "panel", "text", "muted", "line", "warn")
    plain = [f"--ck-{name}:{getattr(theme, name)}" for name in names]
    return ";".join(plain + [f"--ck-s{shade + STEPS}:{colour}" for shade, colour in theme.scale().items()])


def stylesheet() -> str:
    """Return the CSS of fragments and pages."""
    steps = (i for i in range(2 * STEPS + 1) if i != STEPS)
    shades = "\n".join(f".ck .ck-g{i}{{background:var(--ck-s{i})}}" for i in steps)
    return "\n".join(
        (
            f".ck{{color-scheme:light dark;{_variables(LIGHT)}}}",
            f"@media (prefers-color-scheme:dark){{.ck{{{_variables(DARK)}}}}}",
            FRAGMENT,
            shades,
            PAGE,
            TABLES,
        )
    )


FRAGMENT = """
.ck{background:var(--ck-surface);color:var(--ck-text);line-height:1.5;
  font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;
  overflow-wrap:anywhere;-webkit-text-size-adjust:100%}
.ck *{box-sizing:border-box}
.ck-answer{position:relative}
.ck-alone{padding:.6rem .9rem;border:1px solid var(--ck-line);border-radius:6px}
.ck .ck-q{margin:0 0 .35rem;font-weight:650}
.ck .ck-c{color:var(--ck-muted);font-weight:400;font-size:.875em}
.ck .ck-tokens{margin:.2rem 0;padding:.5rem .7rem;border-left:3px solid var(--ck-line);font-size:1.0625rem;
  line-height:2;white-space:pre-wrap}
.ck .ck-t{border-radius:3px;padding:.14em 0;print-color-adjust:exact;-webkit-print-color-adjust:exact}
.ck .ck-t:hover,.ck .ck-t:focus{outline:2px solid var(--ck-text);outline-offset:1px}
.ck .ck-t bdi{unicode-bidi:isolate}
.ck .ck-on bdi{text-decoration:underline;text-decoration-thickness:2px;text-underline-offset:.22em;
  font-weight:650}
.ck .ck-on>bdi::before{content:"\\25B8"}
.ck .ck-empty{font-size:.8em;font-style:italic}
.ck .ck-card{display:none}
.ck .ck-t:hover>.ck-card,.ck .ck-t:focus>.ck-card{display:block;position:absolute;z-index:5;left:0;right:0;
  margin-top:.15rem;max-width:34rem;padding:.6rem .8rem;background:var(--ck-panel);color:var(--ck-text);
  border:1px solid var(--ck-line);border-radius:6px;box-shadow:0 6px 20px #0005;pointer-events:none;
  font-size:.875rem;font-weight:400;line-height:1.55;white-space:normal}
.ck .ck-f{display:grid;grid-template-columns:5.6rem 1fr;column-gap:.6rem}
.ck .ck-f>:first-child{color:var(--ck-muted)}
.ck .ck-legend,.ck .ck-sum{margin:.3rem 0;font-size:.875rem;color:var(--ck-muted)}
.ck .ck-legend .ck-t{color:var(--ck-text);padding:.1em .45em;font-variant-numeric:tabular-nums}
.ck .ck-legend .ck-on{padding:0}
.ck .ck-legend>span{white-space:nowrap;margin-right:.9rem;display:inline-block}
.ck .ck-warn{margin:.4rem 0;font-weight:600;color:var(--ck-warn)}
@media (forced-colors:active){.ck .ck-t{border-bottom:1px dotted}}
"""

PAGE = """
body.ck{margin:0}
.ck .ck-page{max-width:76rem;margin:0 auto;padding:1.5rem clamp(.9rem,3vw,2.25rem) 4rem}
.ck .ck-page h1{font-size:clamp(1.45rem,1.1rem + 1.4vw,2.1rem);line-height:1.2;margin:.4rem 0 .6rem;
  text-wrap:balance}
.ck .ck-page h2{font-size:1.25rem;line-height:1.3;margin:2.4rem 0 .6rem;padding-top:.9rem;
  border-top:1px solid var(--ck-line)}
.ck .ck-page h3{font-size:1rem;margin:1.4rem 0 .3rem}
.ck .ck-page p{max-width:46rem;margin:.5rem 0}
.ck .ck-page .ck-legend,.ck .ck-page .ck-sum{max-width:none}
.ck .ck-page .ck-lead{font-size:1.0625rem}
.ck .ck-note{color:var(--ck-muted);font-size:.9375rem}
.ck blockquote{margin:.5rem 0;padding:.5rem .8rem;background:var(--ck-panel);border-radius:6px;
  max-width:46rem;white-space:pre-wrap}
.ck details>summary{cursor:pointer;padding:.35rem 0;color:var(--ck-muted)}
"""

TABLES = """
.ck .ck-scroll{overflow-x:auto}
.ck .ck-table{border-collapse:collapse;width:100%;font-size:.9375rem;line-height:1.4}
.ck .ck-table caption{text-align:left;color:var(--ck-muted);padding:.2rem 0 .6rem}
.ck .ck-table caption span{display:block;max-width:min(46rem,86vw)}
.ck .ck-table th,.ck .ck-table td{text-align:left;vertical-align:top;padding:.55rem .7rem .55rem 0;
  border-bottom:1px solid var(--ck-line);background:none;color:inherit}
.ck .ck-table thead th{font-size:.8125rem;color:var(--ck-muted);font-weight:650;vertical-align:bottom}
.ck .ck-table tbody th{font-weight:650}
.ck .ck-num td,.ck .ck-num th{padding-right:.9rem;white-space:nowrap;font-variant-numeric:tabular-nums}
.ck .ck-num .ck-t{white-space:pre}
.ck .ck-num td:not(:first-of-type){text-align:right}
.ck .ck-num thead th:nth-child(n+3){text-align:right}
.ck .ck-v{display:block;font-weight:650;white-space:nowrap}
.ck .ck-false{display:inline-block;border:1px solid currentColor;border-radius:3px;padding:0 .35em;
  font-size:.75rem;font-weight:700;letter-spacing:.04em;color:var(--ck-warn)}
.ck .ck-say{display:block;color:var(--ck-muted);font-size:.875rem}
.ck .ck-stack{table-layout:fixed}
@media (max-width:900px){
  .ck .ck-stack thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
  .ck .ck-stack,.ck .ck-stack tbody,.ck .ck-stack tr,.ck .ck-stack th,.ck .ck-stack td,.ck .ck-stack caption{
    display:block}
  .ck .ck-stack tr{padding:.7rem 0;border-bottom:2px solid var(--ck-line)}
  .ck .ck-stack th,.ck .ck-stack td{border:0;padding:.22rem 0}
  .ck .ck-stack tbody th{font-size:1.0625rem}
  .ck .ck-stack td{display:grid;grid-template-columns:7.2rem 1fr;column-gap:.6rem}
  .ck .ck-stack td::before{content:attr(data-label);color:var(--ck-muted);font-size:.8125rem;padding-top:.1em}
}
"""
