"""Feast: feature definitions, quality checks, materialisation, SQL for analysts."""
