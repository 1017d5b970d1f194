"""What is put to models: messages, styles, worked examples, prompts."""
