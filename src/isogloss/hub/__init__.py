"""Level 3: foreign checkpoints in and out."""
