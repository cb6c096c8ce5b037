"""Command line and screen: entry points, signals, tables."""
