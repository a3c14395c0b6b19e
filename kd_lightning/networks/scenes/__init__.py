"""Networks for scenes with questions and captions."""
