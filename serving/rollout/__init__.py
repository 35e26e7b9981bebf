"""Which release answers whom: following the manifest, experiments."""
