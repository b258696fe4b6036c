"""What differs between databases.

factory      from a URL or an engine to its dialect
base         the contract: what every database does for the store
statement    compiled statements, programs, record sets
base_driver  running statements around SQLAlchemy, or through it where the app listens
connections  connections of the engine's pool, lent for one batch
connecting   the addresses of connections, and how they are closed
terminating  closing connections without waiting for the server
executing    statements on a connection of SQLAlchemy's
failure      the meanings of drivers' errors
events       SQL over rows shaped like the log
items        SQL over stored items
item_times   the times of items, which keep their order
streams      locking the heads of streams
ddl          creating and widening tables
columns      what existing columns can hold
projector    DDL and clocks for the projector
sqlite       SQLite through aiosqlite
postgresql   PostgreSQL through asyncpg
mysql        MySQL and MariaDB through asyncmy
"""
