"""docs/reliability.md: the tables, between marks; what stands around them is written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sections import SECTIONS

BEGIN, END = "<!-- made by make faults: begin -->", "<!-- end -->"


def write(results: Path, page: Path) -> str:
    """Put the tables of what was tried into the page; what was done, in a line."""
    parts = []
    for section in SECTIONS:
        file = results / f"{section.name}.json"
        rows = json.loads(file.read_text()) if file.exists() else []
        if rows:
            parts.append(f"### {section.title}\n\n" + "\n".join(lines(section.table(rows))))
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}")
    return f"{page} is written: {len(parts)} sections"


def lines(table: Sequence[Sequence[Any]]) -> list[str]:
    head, *rows = ([str(cell).replace("|", "\\|") for cell in row] for row in table)
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
