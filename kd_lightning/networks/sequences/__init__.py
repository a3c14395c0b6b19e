"""Networks that classify sequences, such as the rows of an image."""
