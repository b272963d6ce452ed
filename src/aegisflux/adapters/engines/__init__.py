"""Real engines, started from their wheels."""
