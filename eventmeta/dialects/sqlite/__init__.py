"""SQLite, embedded: one writer at a time, in the thread of its connection.

driver     the dialect: transactions, each one hop to the connection's thread
shared     the dialect in memory, where the app and the store share one connection
thread     work in the thread of a connection
settings   settings of a connection, set for the store and put back afterwards
sql        statements on the log
items      SQL over stored items
projector  DDL and clocks for the projector
ddl        creating and widening tables
columns    what existing columns can hold
"""
