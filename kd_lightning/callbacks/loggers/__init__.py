"""Callbacks that log images or save statistics of a run."""
