"""Building blocks: everything between a backbone's features and a set of predictions."""
