"""What config.json says the model is. In: a folder's settings. Out: transformers' own config and skeleton, and
what they say, checked against the headers.

Nothing of the folder is run: settings that would choose code, kernels or other weights are dropped.
"""
