"""Probes: what training did, from checkpoints alone."""
