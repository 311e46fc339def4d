"""Level 0: types, lengths, configuration, lookup, key maps, random numbers, processes, errors."""
