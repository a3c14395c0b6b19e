"""The plan of a comparison: variants and seeds, their order, and their estimated costs."""
