"""Runs: the folder a run leaves behind."""

from whet.runs.folder import RunFolder, plain

__all__ = ["RunFolder", "plain"]
