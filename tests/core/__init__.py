"""Tests of what knows no database."""
