"""The agent: believes only what is signed, applies it, proves it from the kernel, and can undo it alone."""
