"""The data contract: the folder a company delivers, read into one shape; samples and public data in it."""
