"""Which heads speak for memory or for the context: conflict prompts, path patching, scores and their maps."""
