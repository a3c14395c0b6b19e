"""Measurements of trained networks and of the networks' costs."""
