"""Level 6: one short module per verb."""
