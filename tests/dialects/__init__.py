"""Tests of what differs between databases."""
