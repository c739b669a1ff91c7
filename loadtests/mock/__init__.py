"""The parts of the mock LLM server."""
