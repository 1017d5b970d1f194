"""Finding, validating and plotting emotion circuits with Hugging Face models."""
