"""What several recipes have in common: techniques, tickets, translation."""
