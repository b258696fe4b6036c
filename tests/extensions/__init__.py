"""Tests of optional dependencies."""
