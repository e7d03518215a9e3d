"""A folder on disk as facts. In: a path. Out: files, headers, tensors, counts, as tables.

Nothing here knows torch, transformers or the network, and nothing reads a weight.
"""
