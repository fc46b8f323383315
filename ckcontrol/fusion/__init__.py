"""Two distributions and tau in, one distribution out: log-probabilities, signals of a step, the one equation."""
