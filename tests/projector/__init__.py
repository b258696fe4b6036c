"""Tests of projections that follow the log."""
