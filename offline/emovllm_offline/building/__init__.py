"""From a model to a circuit that serves: every stage after the other, in a given time."""
