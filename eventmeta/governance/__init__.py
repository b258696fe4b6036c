"""Whether a store is as it should be.

verify  comparing read models with the log and the items
"""
