"""The software of a host, read from its file system."""
