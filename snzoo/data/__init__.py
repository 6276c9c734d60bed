"""A path → labeled images → exact pixels."""
