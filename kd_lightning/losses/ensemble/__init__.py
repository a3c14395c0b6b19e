"""Losses with several teachers."""
