"""A Hugging Face decoder: where its sites are, its hooks, its replies."""
