"""The same facts over the network. In: a Hub id. Out: a folder, downloaded, or a sparse copy with true headers.

The only room that sends requests; what went wrong is said in words.
"""
