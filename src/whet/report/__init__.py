"""Reports: run folders and comparisons as one self-contained HTML page, and the ledger of studies as Markdown.

Everything here is a function of files that runs have written; nothing loads a model.
"""
