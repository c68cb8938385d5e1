"""What runs did, for people to read: an HTML page of one or several, and a model card; imports no torch."""
