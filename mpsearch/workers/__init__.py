"""Other processes that evaluate: forked ones, a Dask cluster, those that share a storage."""
