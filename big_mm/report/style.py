"""The page's style sheet."""

CSS = """
:root { --ink: #1a1d21; --grey: #667085; --line: #e4e7ec; --soft: #f6f7f9; --blue: #1f5fa8;
  --good: #1a7f37; --bad: #b42318; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 40px 28px 64px; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 44px 0 4px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 14px; margin: 22px 0 6px; }
p { margin: 4px 0 12px; max-width: 78ch; }
.note, .lead, figcaption, th.plain { color: var(--grey); }
.lead { font-size: 16px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; font-size: 12px; color: var(--grey); padding: 6px 10px; }
td { padding: 7px 10px; border-top: 1px solid var(--line); vertical-align: top; }
td.metric { width: 40%; }
td.metric small { display: block; color: var(--grey); line-height: 1.35; }
tr.family td { border-top: 0; padding: 20px 10px 4px; font-weight: 600; }
tr.family td small { display: block; line-height: 1.35; }
tr.family td + td { font-weight: 400; font-size: 12px; color: var(--grey); vertical-align: bottom; }
.value { font-weight: 600; font-size: 16px; white-space: nowrap; }
.chance { color: var(--grey); font-size: 12px; white-space: nowrap; }
.bar { position: relative; height: 6px; width: 100%; max-width: 190px; margin-top: 5px;
  background: var(--line); border-radius: 3px; }
.bar i { position: absolute; inset: 0 auto 0 0; background: var(--blue); border-radius: 3px; }
.bar b { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--ink); }
.parts { position: relative; display: flex; height: 14px; background: var(--soft); }
.parts i { height: 100%; border-right: 1px solid #fff; } .plain i { background: var(--blue); }
.parts b { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--ink); }
.key { margin-right: 16px; font-size: 13.5px; white-space: nowrap; }
.key i { display: inline-block; width: 12px; height: 12px; margin-right: 5px; }
td.wide { width: 420px; vertical-align: middle; }
.grid { display: grid; gap: 22px 18px;
  grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); }
figure { margin: 0; }
.grid figure { display: flex; flex-direction: column; justify-content: space-between; }
.grid img { width: 100%; }
figcaption { font-size: 12.5px; line-height: 1.4; }
figcaption strong { color: var(--ink); font-size: 14px; display: block; }
.cards { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(188px, 1fr)); }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 12px; break-inside: avoid;
  font-size: 13.5px; line-height: 1.4; }
.card img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover;
  margin-bottom: 10px; border-radius: 4px; }
.said { font-weight: 600; }
.said u { color: var(--bad); text-decoration: underline wavy 1px; text-underline-offset: 3px; }
.truth { color: var(--grey); margin-top: 6px; }
.chip { display: inline-block; font-size: 11.5px; padding: 0 7px; border-radius: 9px;
  margin: 6px 4px 0 0; border: 1px solid; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); }
.two { display: grid; gap: 18px 32px; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); }
.query { display: flex; gap: 14px; padding: 10px 0; border-top: 1px solid var(--line);
  break-inside: avoid; font-size: 13.5px; }
.query > img { width: 84px; height: 84px; border-radius: 4px; flex: none; object-fit: cover; }
.query ol { margin: 0; padding-left: 22px; }
.found { display: flex; gap: 8px; margin-top: 6px; }
.found figure { width: 76px; text-align: center; }
.found img { width: 76px; height: 76px; border-radius: 4px; border: 3px solid var(--line);
  object-fit: cover; display: block; }
nav { margin: 18px 0 0; font-size: 13.5px; } nav a { color: var(--blue); margin-right: 16px;
  text-decoration: none; white-space: nowrap; }
.found .good img { border-color: var(--good); } .found .bad img { border-color: var(--bad); }
.found .apart { margin-left: 14px; }
.found figcaption { font-size: 11px; color: inherit; }
.heat { width: auto; font-size: 12.5px; }
.heat { border-collapse: separate; border-spacing: 3px; }
.heat td { text-align: center; padding: 0; width: 60px; height: 32px; vertical-align: middle;
  border: 0; border-radius: 3px; }
.heat td.variant { outline: 2px solid var(--ink); }
.heat th { padding: 4px 8px; font-weight: 500; color: var(--ink); }
.heat .none { color: #b8bec8; background: var(--soft); }
.narrow { width: auto; font-size: 13.5px; }
.narrow td { padding: 4px 10px; }
details { margin-top: 12px; } summary { cursor: pointer; color: var(--blue); }
pre { font-size: 12px; line-height: 1.4; background: var(--soft); padding: 14px; overflow: auto;
  border-radius: 6px; max-height: 520px; }
footer { margin-top: 48px; padding-top: 12px; border-top: 1px solid var(--line);
  color: var(--grey); font-size: 12.5px; }
@media print { body { padding: 0; max-width: none; font-size: 12px; } h2 { break-after: avoid; }
  details, nav { display: none; } .bar i, .heat td, .bar { print-color-adjust: exact;
  -webkit-print-color-adjust: exact; } }
"""
