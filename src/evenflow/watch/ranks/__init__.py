"""Training on several ranks: each rank sees its part, and the run shows what one process would have shown."""
