"""Level 2: what is hidden or changed before the encoder sees it."""
