"""What people say of a model's answers: kept in a database, and written out as data to train the next model with; no torch in here."""
