"""vLLM's OpenAI-compatible server with an `emotion` parameter."""
