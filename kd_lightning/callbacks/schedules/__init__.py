"""Schedules of temperatures, weights and other numbers of losses."""
