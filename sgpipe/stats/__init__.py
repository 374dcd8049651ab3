"""The audit of a run: counts, health checks and precision, as terminal tables, JSON and HTML
pages.
"""
