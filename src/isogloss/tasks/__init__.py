"""Level 3: supervised tasks over an encoder."""
