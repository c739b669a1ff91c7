"""The system under study: plain asyncio code that imports nothing else of the project."""
