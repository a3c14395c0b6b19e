"""Callbacks that freeze a teacher, or make it from the student during the fit."""
