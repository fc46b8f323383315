"""Steered answers from a vLLM engine in this process."""
