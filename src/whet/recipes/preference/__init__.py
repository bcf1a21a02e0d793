"""Recipes of the preference family."""
