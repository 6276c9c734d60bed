"""A path → labelled images → exact pixels."""
