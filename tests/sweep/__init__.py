"""A random sweep of every option over models of real widths; see tests/sweep/run.py."""
