"""The life of a task: submit, claim, renew, finish, cancel, sweep; nobody else changes a status.

Every change is a compare-and-set on the row; every write of a worker names its attempt, so a worker
that lost its lease can harm nothing.
"""
