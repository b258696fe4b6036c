"""Tests of all sessions of an engine."""
