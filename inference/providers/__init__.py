"""Providers: one class for each kind of place that answers."""
