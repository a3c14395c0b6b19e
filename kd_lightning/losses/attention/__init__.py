"""Losses on attention: learned between teachers, of gradients, and of a network on itself."""
