"""Seconds and memory of this project beside those of other pipelines that do the same."""
