"""What only a live process needs: its loop, its sockets, its signals."""
