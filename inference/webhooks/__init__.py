"""Telling whoever submitted a task how it has ended, until they have taken it.

`deliveries` writes the row of a delivery in the transaction that ends its task; a message only
wakes the worker, which delivers what is due: `sending`.
"""
