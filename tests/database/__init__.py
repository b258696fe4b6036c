"""Tests of one engine with its tables."""
