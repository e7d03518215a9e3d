"""What running and adapting will take, before any weights. In: an architecture. Out: bytes and counts, measured on
torch's meta device.
"""
