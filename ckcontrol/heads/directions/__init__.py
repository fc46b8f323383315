"""One vector in one layer that turns a model toward its context or its memory: found, kept as a file, and added."""
