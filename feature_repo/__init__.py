"""Feast: the definitions of the features, their quality gate and their way into the online store."""
