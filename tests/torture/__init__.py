"""A campaign of faults against the store, with a check of every promise afterwards.

``python -m tests.torture --help`` says how to run it. Reading order: `journal` is what the writers
write down, `worker` is a process that writes, `faults` is what is done to them meanwhile, `checks`
compares the database with the journal, `campaign` puts these together.
"""
