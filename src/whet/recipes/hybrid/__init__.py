"""Recipes of the hybrid family."""
