"""Checks, connectors and arithmetic that the losses share."""
