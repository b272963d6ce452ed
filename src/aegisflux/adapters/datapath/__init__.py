"""Datapaths: the kernel, and its simulation."""
