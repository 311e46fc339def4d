"""Level 2: encoders from audio to frames to states, all on packed streams."""
