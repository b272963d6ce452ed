"""Services: thin shells around the domain."""
