"""A report as one self-contained HTML file: no script, nothing fetched, readable at any width, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from isogloss.core.files import write_whole


class Report:
    """Collects blocks from top to bottom; `write` makes the page. All text is escaped except charts, which are SVG."""

    def __init__(self, title: str, lead: str) -> None:
        self._title = title
        self._blocks = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(lead)}</p>']

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._blocks.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str, *, kind: str = "") -> None:
        """Add a paragraph; `kind` is "" , "note" or "warning"."""
        self._blocks.append(f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>")

    def charts(self, charts: Sequence[tuple[str, str]]) -> None:
        """Add charts (SVG, caption) side by side where there is room."""
        captions = [f"<figcaption>{escape(caption)}</figcaption>" if caption else "" for _, caption in charts]
        figures = "".join(
            f'<figure class="chart">{svg}{caption}</figure>' for (svg, _), caption in zip(charts, captions, strict=True)
        )
        self._blocks.append(f'<div class="charts">{figures}</div>')

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        caption: str = "",
        numeric: Sequence[int] = (),
        emphasis: Sequence[int] = (),
    ) -> None:
        """Add a table; `numeric` columns are aligned right, `emphasis` rows are set bold."""

        def cell(tag: str, column: int, text: str) -> str:
            return f"<{tag}{' class=number' if column in numeric else ''}>{escape(text)}</{tag}>"

        head = "".join(cell("th", i, text) for i, text in enumerate(header))
        body = "".join(
            f"<tr{' class=emphasis' if i in emphasis else ''}>{''.join(cell('td', j, text) for j, text in enumerate(row))}</tr>"
            for i, row in enumerate(rows)
        )
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        self._blocks.append(
            f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def details(self, summary: str, text: str) -> None:
        """Add preformatted text that is folded away."""
        self._blocks.append(f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>")

    def footer(self, text: str) -> None:
        """End the page."""
        self._blocks.append(f"<footer>{escape(text)}</footer>")

    def html(self) -> str:
        """Return the page."""
        style = files("isogloss.benchmark").joinpath("report.css").read_text(encoding="utf-8")
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self._title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
            + "\n".join(self._blocks)
            + "\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        write_whole(path, self.html())
