"""Vectors of texts: stored by hash, searched for neighbours, kept in Milvus."""
