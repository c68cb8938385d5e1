"""Text from a trained model: key/value cache, sampling, streaming."""
