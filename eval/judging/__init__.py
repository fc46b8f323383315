"""One sample to its verdict: which answer was given, and what it contributes to every metric."""
