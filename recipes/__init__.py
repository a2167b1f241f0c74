"""Programs that train, prune and export on real data: python -m recipes.<name>, from a checkout."""
