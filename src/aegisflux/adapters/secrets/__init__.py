"""Keepers of secrets."""
