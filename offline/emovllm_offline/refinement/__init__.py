"""From a circuit and replies that a judge accepted to a better circuit."""
