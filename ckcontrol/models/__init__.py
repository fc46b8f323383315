"""Names to models: what `demo`, `tiny`, a folder or a Hugging Face id stands for, and where its files come from."""
