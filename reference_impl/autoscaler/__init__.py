"""How many instances there should be."""
