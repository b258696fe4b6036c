"""SQLite, embedded: one writer at a time, in the thread of its connection."""
