"""One engine with its tables.

database       reads and transactions on one engine
reader         concurrent reads share a query
retry          which failures pass if one tries again
failures       errors of drivers become errors of the store
opening        the first connection, made once for all callers
existing       what is there in a database
column_faults  whether existing columns can hold what the store writes
create_tables  adding what is missing
engines        the engines behind `from_url`
event_reading  reading the log in order, and how far it can be read
corruption     naming the event that cannot be read
"""
