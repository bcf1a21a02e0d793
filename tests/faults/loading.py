"""What is refused as it is loaded, counted: the cases of test_loading.py by what they try.

python tests/faults/loading.py      results/faults/loading.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

TRIED = {
    "pickled weights": ("pickle", "holds_no_objects", "zip_of"),
    "code beside a model": ("code", "kernel", "template"),
    "ways out of a folder": ("index", "adapters_name", "cuts_only", "no_folder_elsewhere"),
    "files that lie": ("that_lie", "whose_note", "makes_no_objects"),
    "servers": ("binds",),
}


def survey() -> dict[str, Any]:
    """Run the cases, and count them by what is tried and how they ended."""
    file = Path(__file__).parent / "test_loading.py"
    with tempfile.TemporaryDirectory() as place:
        told = Path(place) / "told.xml"
        subprocess.run([sys.executable, "-m", "pytest", str(file), "-q", "-p", "no:cacheprovider", f"--junitxml={told}"],
                       capture_output=True, check=False)  # fmt: skip
        cases = list(ElementTree.parse(told).iter("testcase"))
    tried: dict[str, int] = {}
    wrong = [case.get("name", "") for case in cases if any(child.tag in ("failure", "error") for child in case)]
    for case in cases:
        name = case.get("name", "").partition("[")[0]
        kind = next((kind for kind, words in TRIED.items() if any(word in name for word in words)), "the rest")
        tried[kind] = tried.get(kind, 0) + 1
    return {"cases": len(cases), **tried, "wrong": wrong, "holds": bool(cases) and not wrong}


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from load import keep

    found = survey()
    keep("loading", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
