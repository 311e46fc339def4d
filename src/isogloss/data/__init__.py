"""Level 2: from recordings in any form to batches."""
