"""Tests beside the Agents SDK."""
