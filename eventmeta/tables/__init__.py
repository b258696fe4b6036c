"""The tables of a store.

names   their names, and the options that set them
tables  their columns, keys and indexes
"""
