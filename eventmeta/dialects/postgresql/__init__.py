"""PostgreSQL, through asyncpg.

driver           the dialect: transactions, hints, errors
codecs           statements that mean the same with any codecs of the app
sql              statements on the log, and the horizon
fast_path        the one statement that appends a batch
fast_path_items  the tables of items within that statement
items            SQL over stored items
projector        DDL and clocks for the projector
ddl              creating and widening tables
columns          what existing columns can hold
"""
