"""Networks around networks."""
