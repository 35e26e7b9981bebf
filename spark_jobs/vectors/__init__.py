"""Semantic embeddings: stored by text, kept in Milvus, searched for neighbours."""
