"""The same facts over the network. In: a Hub id. Out: a folder, downloaded, or a sparse copy with true headers.

The only room that sends requests, and it says what went wrong in words.
"""
