"""A page to chat with the server, where it was started with `--playground`."""
