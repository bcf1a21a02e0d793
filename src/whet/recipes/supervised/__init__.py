"""Recipes of the supervised family."""
