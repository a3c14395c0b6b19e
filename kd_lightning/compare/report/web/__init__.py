"""The page of a comparison: one HTML file that asks for nothing from anywhere."""
