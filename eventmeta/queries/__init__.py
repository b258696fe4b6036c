"""Questions asked of a store.

scope                    a database as one user may read it
ownership                the condition that limits a statement to what a user may see
statements               the statements of all reads
sessions                 finding and listing sessions
history                  the past of a session or a user
history_statements       the statements that read the past
moments                  the events that had been recorded by a moment
conversation_statements  the statements that read conversations
usage                    sums of tokens, by group
"""
