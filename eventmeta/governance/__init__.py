"""Whether a store is as it should be.

verify  comparing the read models with the log and the items
"""
