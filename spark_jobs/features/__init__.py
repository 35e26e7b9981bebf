"""Features that are counted from interactions; `build_features` joins them with all others."""
