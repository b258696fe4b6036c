"""Tests of commands that become events."""
