"""Foreign models: one file per family (its `model_type`, with _ for -), found by its name."""
