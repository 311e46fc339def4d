"""Level 5: suites of measurements and their reports."""
