"""What stands behind the ports in virtual time."""
