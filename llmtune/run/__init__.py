"""One run: its folder, what it logs and leaves."""
