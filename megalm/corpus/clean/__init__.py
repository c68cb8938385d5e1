"""Cleaning of documents one by one: extraction, characters, language, addresses, quality, personal data."""
