"""A projection as SQL statements.

registry           the projections of a database
projection_checks  what a projection must be like
fold               the statements that keep a projection's table
apply              projections in plain Python
apply_connection   the connection that they are given
comparison         comparing a table with its fold of the log
item_changes       updating the tables of conversations after a change of items
item_statements    the statements for that
item_relations     the relations of items that they fold
item_provenance    which run an item comes from
spelling           items that a database cannot parse as they are
"""
