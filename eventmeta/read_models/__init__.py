"""A projection as SQL statements.

registry           the projections of a database
projection_checks  checks of a projection before it is registered
fold               the statements that keep a projection's table
apply              running projections in plain Python
apply_connection   the connection that a projection in plain Python gets
comparison         comparing a table with the fold of the log
item_changes       updating the tables of conversations after a change of items
item_statements    the statements that update those tables
item_relations     the relations of items that those statements fold
item_provenance    which run an item comes from
spelling           items that a database cannot parse as they are
"""
