"""The browser that reports are looked at with."""

from __future__ import annotations

import os
import shutil

CHROMIUM = os.environ.get("WHET_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
