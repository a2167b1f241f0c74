"""What runs have come to, beside the published numbers: tables, plots, pages."""
