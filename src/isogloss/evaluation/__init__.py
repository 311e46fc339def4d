"""Level 4: features, probes, ABX, metrics and their intervals."""
