"""Level 2: what the hidden parts should be."""
