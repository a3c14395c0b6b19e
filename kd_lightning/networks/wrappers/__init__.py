"""Wrappers: networks that hold other networks and add exits, branches, ensembles or precision."""
