"""Networks that teach themselves."""
