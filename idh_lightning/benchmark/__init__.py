"""Seconds and memory of this project beside those of other ways to do the same."""
