"""The bus: in memory and NATS."""
