"""`make faults`: every fault tried, and the table of docs/reliability.md.

Each section's rows are kept in results/faults/SECTION.json as they come, so that a suite that was stopped goes on; `--fresh` begins
anew. Sections named on the command line are run alone; `--table` runs nothing and writes the page.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from harness import quiet_home
from sections import SECTIONS
from table import write

from whet.training.checkpoint import write_atomic

ROOT = Path(__file__).parents[2]


def main() -> None:
    known = [section.name for section in SECTIONS if section.there]
    asked = argparse.ArgumentParser(prog="faults", description=__doc__)
    asked.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(known))
    asked.add_argument("--results", type=Path, default=ROOT / "results" / "faults")
    asked.add_argument("--page", type=Path, default=ROOT / "docs" / "reliability.md")
    asked.add_argument("--fresh", action="store_true", help="try again what was tried")
    asked.add_argument("--table", action="store_true", help="write the page only")
    given = asked.parse_args()
    if unknown := set(given.sections) - set(known):
        asked.error(f"no section is called {', '.join(sorted(unknown))}")
    given.results.mkdir(parents=True, exist_ok=True)
    for section in SECTIONS:
        if section.there and not given.table and section.name in (given.sections or known):
            file = given.results / f"{section.name}.json"
            rows = json.loads(file.read_text()) if file.exists() and not given.fresh else []
            with tempfile.TemporaryDirectory() as place, quiet_home(Path(place)):
                for row in section.rows(Path(place), len(rows)):
                    rows.append(row)
                    write_atomic(file, json.dumps(rows, indent=1) + "\n")
                    print(f"{section.name} {len(rows)}: {json.dumps(row)}"[:400], flush=True)
    print(write(given.results, given.page))


if __name__ == "__main__":
    main()
