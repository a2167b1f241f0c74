"""How an experiment is run: its settings, one run in a folder of its own, sweeps of many."""
