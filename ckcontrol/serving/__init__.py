"""Steered requests over HTTP: one reader of bodies and one writer of replies, and a server of its own."""
