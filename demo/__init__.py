"""The demo: a small real fleet, and its story from the first snapshot to panic."""
