"""Two streams of one model, one loop: prompts in, steered answers out; and the naive twin that the loop must equal."""
