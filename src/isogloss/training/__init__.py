"""Level 4: the loop (the only one), checkpoints, health, provenance."""
