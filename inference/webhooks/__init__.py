"""Webhooks about the ends of tasks, retried until their receivers accept them.

`deliveries` writes the row of a delivery in the transaction that ends its task; a message only
wakes the worker, which delivers what is due: `sending`.
"""
