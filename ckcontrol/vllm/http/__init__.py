"""Steered requests over HTTP: an OpenAI body in, a steered reply out, as a middleware of vLLM's own server."""
