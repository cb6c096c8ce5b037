"""Arrays to figures; a run folder to one page that people open.

Nothing is imported here: a process that draws panels needs `reports.panels` alone, 0.06 GB instead of 0.5.
"""
