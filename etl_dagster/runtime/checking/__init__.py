"""What must be true before anything is written: source, destination, rights, settings."""
