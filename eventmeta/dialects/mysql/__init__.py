"""MySQL and MariaDB, through asyncmy.

driver      the dialect: transactions and errors
settings    settings of a session, set for the store and put back afterwards
sql         statements on the log
items       SQL over stored items
item_times  the times of items, which keep their order
projector   DDL and clocks for the projector
ddl         creating and widening tables
columns     what existing columns can hold
"""
