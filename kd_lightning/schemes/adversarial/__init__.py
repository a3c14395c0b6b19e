"""Schemes with two players."""
