"""The store: PostgreSQL."""
