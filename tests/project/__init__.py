"""Tests of the project itself: documents, examples, style."""
