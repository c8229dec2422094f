"""Order and time without a database: what the service and its simulation have in common."""
