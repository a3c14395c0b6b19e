"""Networks for sequences."""
