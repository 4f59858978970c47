"""The report's style sheet: one column, light and dark, no outside resource."""

from __future__ import annotations

GRAIN_COLOURS = 8

CSS = """
:root { color-scheme: light dark;
  --page: #f7f6f2; --card: #ffffff; --ink: #1d2330; --soft: #5b6472; --rule: #e2e0d9; --accent: #0b6e6e;
  --bar: #0b6e6e66; --right: #1a8f4c; --right-soft: #1a8f4c1a; --tile: #f3f2ee; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171d; --card: #1c2028; --ink: #e6e8ee; --soft: #9aa3b2; --rule: #2d333e; --accent: #5cc8c2;
  --bar: #5cc8c277; --right: #3ecf7f; --right-soft: #3ecf7f22; --tile: #242933; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 ui-sans-serif, system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 56px 24px 80px; }
h1, h2 { font-family: "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, serif; font-weight: 600;
  line-height: 1.15; letter-spacing: -0.01em; text-wrap: balance; }
h1 { font-size: clamp(30px, 5vw, 46px); margin: 0 0 10px; }
h2 { font-size: 25px; margin: 60px 0 6px; }
p { max-width: 72ch; margin: 6px 0 16px; }
.lead, .soft, figcaption, caption { color: var(--soft); }
.lead span { white-space: nowrap; }
.lead span + span::before { content: "·"; margin: 0 .55em; }
.card, figure { background: var(--card); border: 1px solid var(--rule); border-radius: 14px; }
figure { margin: 18px 0; padding: 18px 20px; }
figure img { display: block; width: 100%; height: auto; }
figcaption { font-size: 14px; margin-top: 8px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 11px 16px; text-align: right; border-top: 1px solid var(--rule); }
thead th { border-top: 0; color: var(--soft); font-size: 13px; font-weight: 500; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
tbody th { font-weight: 600; }
td.value { position: relative; }
td.value i { position: absolute; right: 16px; bottom: 6px; height: 3px; background: var(--bar); border-radius: 2px; }
td.best span { font-weight: 700; color: var(--accent); }
tfoot td, tfoot th { border-top: 2px solid var(--rule); font-weight: 600; }
dl.columns { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; font-size: 14px;
  color: var(--soft); margin: 14px 4px; }
dl.columns dt { color: var(--ink); font-weight: 500; } dl.columns dd { margin: 0; }
.forest svg { display: block; width: 100%; min-width: 210px; height: 26px; }
.forest td { vertical-align: middle; white-space: nowrap; }
.forest .axis { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; }
.forest .range { stroke: var(--soft); stroke-width: 2.5; stroke-linecap: round; }
.forest .sure .range { stroke: var(--accent); } .forest circle { fill: var(--soft); }
.forest .sure circle { fill: var(--accent); }
details { margin: 12px 0; } summary { cursor: pointer; color: var(--accent); font-weight: 500; }
.query { padding: 24px 24px 22px; margin: 20px 0; }
.query .ask { display: flex; gap: 18px; align-items: center; }
.query .ask img { width: 104px; height: 104px; object-fit: contain; border-radius: 10px; background: var(--tile); }
.query blockquote { margin: 0; font: 21px/2.15 "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, serif; }
mark { color: inherit; border-radius: 5px; padding: .1em .28em; background: hsl(var(--h) 78% 88%); }
rt { font: 600 10.5px/1 ui-sans-serif, system-ui, sans-serif; color: hsl(var(--h) 62% 34%); letter-spacing: .02em; }
@media (prefers-color-scheme: dark) { mark { background: hsl(var(--h) 45% 25%); }
  rt { color: hsl(var(--h) 65% 72%); } }
.g0 { --h: 212; } .g1 { --h: 24; } .g2 { --h: 158; } .g3 { --h: 322; } .g4 { --h: 48; } .g5 { --h: 262; }
.g6 { --h: 188; } .g7 { --h: 0; }
.summary { margin: 12px 0 0; } .summary b { font-weight: 600; font-size: 13px; color: var(--soft);
  margin-right: .6em; }
.rank { font-size: 14px; color: var(--soft); margin: 4px 0 14px; }
.rank.first { color: var(--right); font-weight: 600; }
ol.answers { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 12px; list-style: none;
  margin: 0; padding: 0; }
ol.answers li { position: relative; border: 1px solid var(--rule); border-radius: 12px; background: var(--tile);
  overflow: hidden; min-height: 96px; }
ol.answers li.right { border-color: var(--right); box-shadow: 0 0 0 2.5px var(--right); background: var(--right-soft); }
ol.answers img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #fff; }
ol.answers p { margin: 0; padding: 8px 10px 10px; font-size: 13px; line-height: 1.35; }
ol.answers li > p:first-of-type:nth-child(2) { padding-top: 32px; }
ol.answers .place { position: absolute; z-index: 1; top: 7px; left: 7px; min-width: 22px; height: 22px; padding: 0 6px;
  border-radius: 11px; background: var(--card); color: var(--soft); border: 1px solid var(--rule);
  font: 600 12px/20px ui-sans-serif, system-ui, sans-serif; text-align: center; }
ol.answers .right .place { background: var(--right); border-color: var(--right); color: var(--card); }
footer { margin-top: 64px; padding-top: 18px; border-top: 1px solid var(--rule); font-size: 14px;
  color: var(--soft); }
@media (max-width: 640px) { main { padding: 32px 14px 60px; } ol.answers { gap: 7px; }
  .query { padding: 18px 14px; } ol.answers p { font-size: 11px; } th, td { padding: 9px 10px; } }
@media print { .card, figure { break-inside: avoid; } }
"""
