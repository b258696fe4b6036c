"""Tests of projections as SQL statements."""
