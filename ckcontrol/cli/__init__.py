"""The command line. One file per command; each only parses and prints, and importable functions do the work."""
