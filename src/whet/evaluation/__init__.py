"""Evaluation: matrices, metrics, before and after."""
