"""What pruning costs: python -m benchmarks [step] [mask], from a checkout. See README.md."""
