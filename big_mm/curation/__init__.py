"""Offline jobs over shards of records: `python -m big_mm.annotate`."""
