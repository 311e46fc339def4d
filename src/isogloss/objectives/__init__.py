"""Level 3: one file per objective; the file's name is the objective's name."""
