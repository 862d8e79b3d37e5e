"""Rules that leave samples out of a data set, each with its reason."""
