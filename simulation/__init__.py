"""The system under study in virtual time."""
