"""Tests of questions asked of a store."""
