"""Raw sources to clean documents; importing this package loads none of the libraries that do the work."""
