"""Level 1: leaf layers with plain arguments, on packed streams."""
