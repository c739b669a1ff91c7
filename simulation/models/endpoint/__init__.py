"""The parts of the LLM endpoint's behaviour, on either clock."""
