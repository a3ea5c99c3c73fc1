"""Comparisons with other programs, run by hand. What belongs to qvl alone is timed by the program itself (`--stats`)."""
