"""Recipes: one short file a paper."""
