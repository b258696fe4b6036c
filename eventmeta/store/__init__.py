"""All sessions of an engine.

metadata_store  `MetadataStore`
user_store      `UserStore`: the store as one user sees it
handle          what both have in common
queries         finding sessions by a value, and sums of tokens
log             following, replaying and exporting the log
projections     registering projections, catching up, rebuilding
user            `User`: metadata of a user
backfill        filling the tables of conversations from older items
"""
