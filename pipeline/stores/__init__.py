"""Qdrant in process (edge) and over the network (server)."""
