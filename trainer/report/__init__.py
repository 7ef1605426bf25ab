"""A page to look at a run by: what it finds, what it confuses, and what is wrong with the data."""
