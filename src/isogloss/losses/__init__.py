"""Level 2: pure functions from predictions and targets to sums."""
