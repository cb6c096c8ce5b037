"""Runs: assembled from a configuration, kept in folders, resumed, swept."""
