"""Process life: supervision, health, metrics, logs, clock."""
