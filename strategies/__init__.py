"""Search strategies, each one file, found through the entry-point group mpsearch.strategies."""
