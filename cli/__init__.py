"""The command `grasp`: what people type. It checks the settings and starts a module; the work is done elsewhere."""
