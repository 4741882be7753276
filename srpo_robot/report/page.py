"""One HTML page with everything inside it: it opens from disk, without a network.

Jinja's autoescape escapes all text. Markup that a caller passes comes from `part` or `render`, which escape it too. The
page's content security policy blocks every other script and every request, in case an escape is missed.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

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


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page, drawn in this order: warnings, notes, tables, pictures, blocks.

    Attributes:
        title: heading.
        warnings: paragraphs with a coloured border.
        notes: grey paragraphs.
        tables: rows of cells, header row first.
        pictures: PNG or JPEG (a file or its content) with its alternative text.
        blocks: further markup.
    """

    title: str
    notes: Sequence[str] = ()
    tables: Sequence[Sequence[Sequence[str]]] = ()
    pictures: Sequence[tuple[Path | bytes, str]] = ()
    warnings: Sequence[str] = ()
    blocks: Sequence[Markup] = ()


def write_page(
    path: Path, title: str, lead: str, sections: Sequence[Section], style: str = "", script: str = ""
) -> None:
    """Writes one self-contained page. `style` and `script` are inlined; `style` follows the page's own.

    Raises:
        FileNotFoundError: a picture is missing.
    """
    page = render(
        "page.html",
        title=title,
        lead=lead,
        sections=sections,
        policy=_policy(script),
        style=_STYLE + style,
        script=script,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", newline="\n")


def render(template: str, **values: Any) -> Markup:
    """Returns a template of this package filled with `values`. Text in them is escaped, `Markup` is not."""
    return Markup(_templates().get_template(template).render(values))


def part(name: str, *values: Any) -> Markup:
    """Returns the macro `name` of parts.html, called with `values`. Text in them is escaped, `Markup` is not."""
    return getattr(_templates().get_template("parts.html").module, name)(*values)


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("srpo_robot", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_uri"] = _content_uri
    return environment


def _content_uri(content: Path | bytes) -> str:
    return data_uri(content if isinstance(content, bytes) else content.read_bytes())


def data_block(name: str, content: Any) -> Markup:
    """Returns a JSON block that the page's script finds by the id `name`. Text inside cannot end the block.

    Raises:
        ValueError: a number is not finite; give None.
    """
    packed = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return Markup('<script type="application/json" id="{}">{}</script>').format(name, Markup(packed))


def _policy(script: str) -> str:
    allowed = f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" if script else "'none'"
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
