"""Self-contained HTML pages: they need no other file and no network.

They follow the reader's choice of light or dark, and fit the width of a phone.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--faint:#57606a;--line:#d0d7de;--wash:#f3f5f7;--link:#0550ae}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0f141a;--faint:#9aa5b1;--line:#30363d;--wash:#1a2129;
--link:#79b8ff}}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:0 auto;padding:1.2rem 1rem 4rem;color:var(--ink);
background:var(--paper);overflow-wrap:break-word}
h1{font-size:1.6rem;line-height:1.25}h2{font-size:1.2rem;margin-top:2.2rem}a{color:var(--link)}
p.note{color:var(--faint);max-width:46rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.92rem}
td,th{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--faint);font-weight:600}
td span{display:block;color:var(--faint);white-space:nowrap;font-size:.85em}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
img{max-width:100%;height:auto;background:#fff;border-radius:4px}
pre{background:var(--wash);padding:1rem;overflow-x:auto;font-size:.85rem}
audio{width:100%;min-width:11rem;height:2.2rem}
figure{margin:0}figure img{width:100%}figcaption{font-size:.85rem;color:var(--faint)}
.side{display:grid;grid-template-columns:repeat(auto-fill,minmax(13rem,1fr));gap:1rem;margin:.6rem 0 1.6rem}
"""


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """A page that needs no other file; `sections` are headings with HTML below them."""
    body = "\n".join(f"<h2>{html.escape(heading)}</h2>\n{content}" for heading, content in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def html_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; numbers are right-aligned, and an interval in brackets is below its value."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    lines = ["".join(_cell(value) for value in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def html_picture(png: bytes, description: str) -> str:
    """A picture within the page."""
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{_base64(png)}">'


def html_player(audio: bytes, kind: str, caption: str, picture: bytes | None = None) -> str:
    """An audio player, `kind` its MIME type, with a picture above it if given."""
    above = html_picture(picture, f"spectrogram of {caption}") if picture is not None else ""
    source = f"data:{kind};base64,{_base64(audio)}"
    label = html.escape(caption)
    return (
        f'<figure>{above}<audio controls preload="none" aria-label="{label}" src="{source}"></audio>'
        f"<figcaption>{label}</figcaption></figure>"
    )


def html_side_by_side(things: Sequence[str]) -> str:
    """Pieces of HTML beside each other, as many as the width allows."""
    return f'<div class="side">{"".join(things)}</div>'


def html_note(text: str) -> str:
    """An explanatory paragraph."""
    return f'<p class="note">{html.escape(text)}</p>'


def html_text(text: str) -> str:
    """Preformatted text."""
    return f"<pre>{html.escape(text)}</pre>"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f'<td class="n">{value:.4g}</td>'
    if isinstance(value, int):
        return f'<td class="n">{value:,}</td>'
    figure, bracket, interval = str(value).partition(" [")
    below = f"<span>[{html.escape(interval)}</span>" if bracket else ""
    return f"<td>{html.escape(figure)}{below}</td>"
