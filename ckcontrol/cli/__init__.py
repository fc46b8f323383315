"""The command line. One file a command; each only parses and prints, the work is in importable functions."""
