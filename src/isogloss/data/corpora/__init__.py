"""One file per corpus that isogloss knows how to prepare."""
