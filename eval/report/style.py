"""Colours and style sheet of the report, on top of the library's page style.

Knows hex colours and CSS; nothing of runs. Lines and marks contrast at least 3:1 with their background, text 4.5:1.
Series differ by mark and by a written label as well: colour is never alone.
"""

from __future__ import annotations

from ...views.inks import DARK_INKS, LIGHT_INKS, svg_rules

__all__ = ["CSS"]


_VARIABLES = {name: f"var(--ev-{name})" for name in LIGHT_INKS}


def _declared(inks: dict[str, str]) -> str:
    return ";".join(f"--ev-{name}:{colour}" for name, colour in inks.items())


CSS = f"""
.ck{{{_declared(LIGHT_INKS)}}}
@media (prefers-color-scheme:dark){{.ck{{{_declared(DARK_INKS)}}}}}
{svg_rules(_VARIABLES, ".ck ")}
.ck .ev-svg{{max-width:100%;height:auto;display:block;font-family:inherit;overflow:visible}}
.ck .ev-row{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr));gap:1.6rem 1.6rem;
  margin:.6rem 0 1.4rem}}
.ck .ev-three{{grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr))}}
.ck .ev-row>*{{width:100%;min-width:0;max-width:36rem}}
.ck .ev-toc{{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:1rem 0 0;padding:0;list-style:none;
  font-size:.9375rem}}
.ck .ev-toc a,.ck .ev-link{{color:var(--ev-up)}}
.ck .ev-facts{{list-style:none;margin:1rem 0;padding:0;display:grid;gap:.45rem;max-width:60rem}}
.ck .ev-facts li{{padding-left:.9rem;border-left:3px solid var(--ev-s0)}}
.ck .ev-facts .ev-bad{{border-color:var(--ev-down)}}
.ck .ev-cells td{{padding:.4rem .6rem .4rem 0}}
.ck .ev-cells td>div{{display:grid;grid-template-columns:4.1rem minmax(0,1fr);align-items:center}}
.ck .ev-cells .ev-ci{{grid-column:1/-1;white-space:normal}}
.ck .ev-wide .ck-table{{table-layout:auto;width:auto}}
.ck .ev-wide td,.ck .ev-wide th{{padding-right:1rem}}
.ck .ev-glance td>div{{display:grid;grid-template-columns:auto minmax(0,1fr);column-gap:.9rem;align-items:start}}
.ck .ev-glance td .ev-svg{{grid-row:1/3;grid-column:1}}
.ck .ev-glance td .ev-svg~.ev-ci,.ck .ev-glance td .ev-v:has(+.ev-svg){{grid-column:2}}
.ck .ev-glance td:not(:has(.ev-svg))>div{{display:block}}
.ck .ev-glance .ev-v{{white-space:normal}}
.ck .ev-glance tbody th .ev-ci{{font-weight:400}}
@media (min-width:901px){{.ck .ev-glance thead th:first-child{{width:12.5%}}
  .ck .ev-glance thead th:nth-child(2){{width:36%}}}}
.ck .ev-v{{font-weight:650;font-variant-numeric:tabular-nums;white-space:nowrap}}
.ck .ev-ci{{display:block;color:var(--ck-muted);font-size:.8125rem;font-variant-numeric:tabular-nums;
  white-space:nowrap}}
.ck .ev-up{{color:var(--ev-up)}}
.ck .ev-down,.ck .ev-state.ev-down{{color:var(--ev-down)}}
.ck .ev-none{{color:var(--ck-muted)}}
.ck .ev-name{{white-space:nowrap}}
.ck .ev-off>*{{background:var(--ck-panel)!important}}
.ck .ev-table td .ev-svg{{margin:.15rem 0}}
.ck .ev-card{{display:grid;grid-template-columns:minmax(7rem,11rem) 1fr;gap:.3rem 1rem;margin:.5rem 0;
  font-size:.9375rem}}
.ck .ev-card dt{{color:var(--ck-muted)}}
.ck .ev-card dd{{margin:0;min-width:0}}
.ck .ev-card pre,.ck pre.ev-pre{{margin:0;white-space:pre-wrap;font-size:.8125rem;line-height:1.45;
  background:var(--ck-panel);border-radius:6px;padding:.5rem .7rem;overflow-wrap:anywhere}}
.ck .ev-mono{{font-family:ui-monospace,"Cascadia Mono","DejaVu Sans Mono",monospace;font-size:.8125rem}}
.ck .ev-item{{border-bottom:1px solid var(--ck-line)}}
.ck .ev-item>summary::before{{content:"▸"}}
.ck .ev-item[open]>summary::before{{content:"▾"}}
.ck .ev-item>summary{{display:grid;grid-template-columns:.8rem 5.2rem minmax(0,1fr) auto;gap:.2rem .9rem;
  align-items:baseline;color:var(--ck-text);padding:.5rem 0;list-style-position:outside}}
.ck .ev-item>summary:hover{{background:var(--ck-panel)}}
.ck .ev-state{{color:var(--ck-muted);font-size:.8125rem}}
.ck .ev-tally{{font-variant-numeric:tabular-nums;font-size:.8125rem;color:var(--ck-muted);white-space:nowrap}}
.ck .ev-body{{padding:.2rem 0 1.2rem}}
.ck .ev-answers{{display:grid;grid-template-columns:minmax(7rem,max-content) 6.4rem minmax(0,1fr);
  gap:.1rem .9rem;margin:.6rem 0;align-items:baseline}}
.ck .ev-answers>*{{min-width:0}}
.ck .ev-answers .ev-said{{white-space:pre-wrap;line-height:1.75}}
.ck .ev-answers .ev-rule{{grid-column:1/-1;border-top:1px solid var(--ck-line)}}
@media (max-width:640px){{
  .ck .ev-glance td>div{{display:block}}
  .ck .ev-item>summary{{grid-template-columns:.8rem 1fr auto}}
  .ck .ev-item>summary>.ev-q{{grid-column:1/-1;grid-row:2}}
  .ck .ev-answers{{grid-template-columns:1fr auto}}
  .ck .ev-answers .ev-said{{grid-column:1/-1}}
  .ck .ev-card{{grid-template-columns:1fr}}
  .ck .ev-card dd{{margin-bottom:.4rem}}
}}
@media print{{.ck .ev-item>summary{{break-after:avoid}}.ck .ev-svg{{break-inside:avoid}}}}
"""
