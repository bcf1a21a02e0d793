"""Models: policies, formats, packing."""
