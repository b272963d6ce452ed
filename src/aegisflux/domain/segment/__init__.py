"""From what services do to what they may do: recorded flows in, rules with their evidence out."""
