"""Which checkpoint of a model is in service: a file of versions, what a candidate must prove to become one, and the way back."""
