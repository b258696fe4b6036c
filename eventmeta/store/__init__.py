"""All sessions of an engine.

metadata_store  `MetadataStore`
user_store      `UserStore`: the store as one user sees it
handle          what both have in common
log             following and replaying the log
projections     registering, catching up, rebuilding
user            `User`: metadata of a user
backfill        filling the tables of conversations for older items
"""
