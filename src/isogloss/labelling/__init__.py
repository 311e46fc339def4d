"""Level 5: units for a corpus, from features to a table, and training that alternates with labelling."""
