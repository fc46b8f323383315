"""What a pair of engine requests carries, and how it is read back. Imports nothing of vLLM."""
