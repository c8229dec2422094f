"""Who may come in, and with which rights: API keys, signed-in users, the local machine."""
