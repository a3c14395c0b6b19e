"""Temperatures and weights that follow a schedule."""
