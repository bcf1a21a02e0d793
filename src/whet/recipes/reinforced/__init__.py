"""Recipes of the reinforced family."""
