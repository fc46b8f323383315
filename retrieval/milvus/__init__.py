"""The same search over a Milvus collection that several machines share."""
