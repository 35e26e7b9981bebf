"""The data contract: reads the folder that a company delivers; makes samples, and converts public data."""
