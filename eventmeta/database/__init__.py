"""One engine with its tables.

database       reads and transactions on one engine
reader         concurrent reads share a query
retry          retrying after failures that pass
failures       errors of drivers become errors of the store
opening        the first connection, made once for all callers
existing       reading which tables and columns exist
column_faults  checking that existing columns can hold what the store writes
create_tables  adding missing tables, columns and indexes
engines        the engines behind `from_url`
event_reading  reading the log in order, up to the horizon
corruption     naming the event that cannot be read
"""
