"""Reading emotions in the hidden states of a model: probes, and what they are trained on."""
