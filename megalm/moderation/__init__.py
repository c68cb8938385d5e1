"""What is said to a model and by it, checked against a policy: texts are found, masked or stopped before anybody sees them."""
