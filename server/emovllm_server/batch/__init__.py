"""`emovllm run-batch`."""
