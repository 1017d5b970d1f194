"""From messages and a model to a circuit."""
