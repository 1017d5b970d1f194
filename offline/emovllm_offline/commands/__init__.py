"""What `emovllm`'s offline commands take, and how they tell it."""
