"""Arms to samples: what is asked of which engine in which order, resumable and shared between arms."""
