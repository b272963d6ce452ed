"""Bytes to domain values and back, without I/O."""
