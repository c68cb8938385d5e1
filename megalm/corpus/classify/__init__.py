"""Trainable classifiers of documents: linear models on hashed word and character n-grams."""
