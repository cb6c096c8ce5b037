"""Configuration: what may stand in it, checked before anything is made."""
