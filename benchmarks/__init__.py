"""Measurements that are committed with the command that made them."""
