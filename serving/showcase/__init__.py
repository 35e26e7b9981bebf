"""The demo, and what it shows at its end."""
