"""`emovllm bench`: plain vLLM against emovllm on one machine."""
