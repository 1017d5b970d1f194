"""The routes, fields and checks that are added to vLLM's server."""
