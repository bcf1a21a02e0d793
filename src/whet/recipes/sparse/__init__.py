"""Which weights move: the same data and loss, other parameters."""
