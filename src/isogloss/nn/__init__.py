"""Level 1: leaf layers on packed streams, with plain arguments."""
