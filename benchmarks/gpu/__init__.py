"""Is emovllm exact on this GPU, and what does it cost there? `python -m benchmarks.gpu --out DIR`."""
