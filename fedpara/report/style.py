"""The style sheet of the pages: by day and by night, on a phone, a desk and paper. Nothing is loaded from elsewhere."""

from ..chart.canvas import COLOURS

NIGHT = (
    "#5fb3f0", "#ff9457", "#3ecf9c", "#e893c8", "#e0bf45", "#a9adff", "#ff8c98", "#b4b4b4", "#4fd0de", "#d3a27f",
)  # fmt: skip


def _series(colours: tuple[str, ...]) -> str:
    return " ".join(f"--c{place}:{colour};" for place, colour in enumerate(colours))


_DAY = "--paper:#fff; --ink:#1b1f24; --soft:#59636e; --line:#d5dae0; --tint:#f4f6f8; --accent:#0b6fb8; "
_NIGHT = "--paper:#14171b; --ink:#e6e9ed; --soft:#a2abb5; --line:#343b44; --tint:#1d2127; --accent:#6cbcf5; "

STYLE = (
    ":root { color-scheme: light dark; "
    + _DAY
    + _series(COLOURS)
    + " }\n@media screen and (prefers-color-scheme: dark) { :root { "
    + _NIGHT
    + _series(NIGHT)
    + " } }"
    + """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 68rem;
  margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: break-word; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.35rem; line-height: 1.25; margin: 3rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { max-width: 46rem; margin: .6rem 0; }
a { color: var(--accent); }
code, pre { font: .875rem/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; }
.soft, figcaption, caption, .note { color: var(--soft); font-size: .9rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; margin: 1.25rem 0 0; font-size: .95rem; }
dl.facts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1.25rem 0; }
dl.facts div { flex: 1 1 9.5rem; background: var(--tint); border: 1px solid var(--line); border-radius: 8px;
  padding: .6rem .8rem; }
dl.facts dt { color: var(--soft); font-size: .85rem; }
dl.facts dd { margin: 0; font-size: 1.4rem; line-height: 1.3; font-weight: 600; font-variant-numeric: tabular-nums; }
dl.facts dd + dd { font-size: .85rem; font-weight: 400; color: var(--soft); }
figure { margin: 1.25rem 0; }
figcaption { margin-top: .4rem; max-width: 46rem; }
.charts { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
.charts.one { max-width: 34rem; }
.panel { container-type: inline-size; min-width: 0; }
.panel .title { margin: 0 0 .25rem; font-weight: 600; font-size: .95rem; }
svg.chart { display: block; width: 100%; max-width: 34rem; height: auto; font-family: system-ui, sans-serif; }
svg.chart text { font-size: 12px; font-variant-numeric: tabular-nums; }
svg.chart text.in { font-size: 11px; font-weight: 600; text-anchor: middle; }
@container (max-width: 27rem) { svg.chart text { font-size: 14px; } svg.chart text.in { font-size: 13px; } }
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .5rem 0 0; padding: 0;
  font-size: .9rem; }
ul.legend li { overflow-wrap: anywhere; }
svg.key { height: 14px; width: auto; margin-right: .4rem; vertical-align: -1px; }
figure img { display: block; max-width: 100%; height: auto; }
.card { background: #fff; border-radius: 8px; padding: .5rem; overflow-x: auto; }
.card img { max-width: none; width: max(100%, 40rem); max-width: 64rem; margin: 0 auto; }
.gallery { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
.gallery figure { margin: 0; }
.gallery img { width: 100%; border-radius: 4px; }
.gallery figcaption { font-size: .8rem; margin-top: .2rem; line-height: 1.3; }
.wide { overflow-x: auto; max-width: 100%; margin: .75rem 0; }
.wide:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .925rem; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; border-bottom-width: 2px; vertical-align: bottom; }
tbody th { font-weight: 400; position: sticky; left: 0; background: var(--paper); }
tbody th.long { white-space: normal; overflow-wrap: break-word; max-width: 22rem; min-width: 7rem; }
th:first-child { padding-left: 0; }
th:first-child, .name, .words { text-align: left; }
td.words { white-space: normal; min-width: 12rem; max-width: 34rem; overflow-wrap: anywhere; }
tr.total th, tr.total td { font-weight: 600; border-bottom: 0; }
td.bar { min-width: 7rem; padding-left: 0; text-align: left; }
td.bar i { display: block; height: .7rem; border-radius: 2px; background: var(--c0); min-width: 1px;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
pre { overflow-x: auto; background: var(--tint); border: 1px solid var(--line); padding: .8rem 1rem; border-radius: 8px;
  margin: .75rem 0; }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--accent); padding: .3rem 0; }
@media (max-width: 30rem) {
  h1 { font-size: 1.6rem; } h2 { margin-top: 2.25rem; }
  dl.facts div { flex-basis: 8rem; } dl.facts dd { font-size: 1.2rem; }
  th, td { padding: .3rem .55rem; } tbody th.long { max-width: 9.5rem; } td.words { min-width: 10rem; }
}
@page { margin: 16mm 14mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav, details:not(.print) { display: none; }
  details.print::details-content { content-visibility: visible; block-size: auto; }
  summary { list-style: none; color: var(--soft); }
  h1, h2, h3, summary { break-after: avoid; }
  figure, tr, dl.facts div, li { break-inside: avoid; }
  thead { display: table-header-group; }
  .charts { grid-template-columns: 1fr 1fr; } .charts.one { grid-template-columns: 1fr; max-width: 13cm; }
  .wide, pre, .card { overflow: visible; } pre { white-space: pre-wrap; }
  #recipe pre { columns: 3; font-size: 7.5pt; }
  .card img { width: 100%; }
  th, td { padding: .15rem .45rem; } table { font-size: 8.5pt; } tbody th { position: static; }
  a { color: inherit; text-decoration: none; }
}
"""
)
