"""Arrays to figures; a run folder to one page that people open."""
