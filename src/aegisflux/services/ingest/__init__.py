"""Ingest: takes events from hosts and third parties, and lets through what is well."""
