"""Measurements: every speed claim of the project is a ratio taken in one run of one of these commands."""
