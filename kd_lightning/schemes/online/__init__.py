"""Networks that learn together."""
