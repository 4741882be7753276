"""One HTML page with everything inside it: opens from disk, without a network.

Text is escaped here and nowhere else; markup that a caller builds is an `Html`, from parts that `text` escaped. The
page's own policy lets no other script run and nothing be loaded, should an escape ever be missed.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srpo_robot.report.frames import data_uri

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p.note { color: #6b7280; margin: .3rem 0; } p.warning { border-left: 4px solid #d97706; padding: .4rem .8rem;
       background: #fffbeb; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .5rem 0; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid #e5e7eb; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; color: #374151; }
img { max-width: 100%; height: auto; }
"""


class Html(str):
    """Markup whose text is already escaped."""


@dataclass(frozen=True)
class Section:
    """A part of the page: notes above, then tables (header row first), then pictures, then markup of its own."""

    title: str
    notes: Sequence[str] = ()
    tables: Sequence[Sequence[Sequence[str]]] = ()
    pictures: Sequence[tuple[Path | bytes, str]] = ()  # PNG or JPEG (a file or its content), what it shows
    warnings: Sequence[str] = field(default=())
    blocks: Sequence[Html] = ()


def write_page(
    path: Path, title: str, lead: str, sections: Sequence[Section], style: str = "", script: str = ""
) -> None:
    """Write one self-contained page; `style` and `script` are inlined after the page's own.

    Raises:
        FileNotFoundError: a picture is missing.
    """
    body = "\n".join(_section(section) for section in sections)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
        f'<h1>{text(title)}</h1>\n<p class="note">{text(lead)}</p>\n{body}\n'
        + (f"<script>{script}</script>\n" if script else "")
        + "</body>\n</html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", newline="\n")


def text(value: object) -> Html:
    """`value` as text of a page, in an element or an attribute."""
    return Html(html.escape(str(value)))


def data_block(name: str, content: Any) -> Html:
    """JSON that the page's script finds under the id `name`. No text in it can end the block.

    Raises:
        ValueError: a number is not finite; give None.
    """
    packed = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return Html(f'<script type="application/json" id="{text(name)}">{packed}</script>')


def _policy(script: str) -> str:
    allowed = f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" if script else "'none'"
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"


def _section(section: Section) -> str:
    parts = [f"<section>\n<h2>{text(section.title)}</h2>"]
    parts += [f'<p class="warning">{text(line)}</p>' for line in section.warnings]
    parts += [f'<p class="note">{text(line)}</p>' for line in section.notes]
    parts += [table(rows) for rows in section.tables]
    parts += [picture(content, shows) for content, shows in section.pictures]
    return "\n".join([*parts, *section.blocks, "</section>"])


def picture(content: Path | bytes, shows: str) -> Html:
    """A PNG or JPEG, a file or its content, with what it shows for those who cannot see it."""
    packed = content if isinstance(content, bytes) else content.read_bytes()
    return Html(f'<img alt="{text(shows)}" src="{data_uri(packed)}">')


def table(rows: Sequence[Sequence[str]]) -> Html:
    """A table, header row first; cells are text unless they are `Html`."""
    head = "".join(f'<th scope="col">{_cell(cell)}</th>' for cell in rows[0])
    lines = ["".join(f"<td>{_cell(cell)}</td>" for cell in row) for row in rows[1:]]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return Html(f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>')


def _cell(cell: str) -> Html:
    return cell if isinstance(cell, Html) else text(cell)
