"""One sample to its verdict: which answer was given, and how well it reads."""
