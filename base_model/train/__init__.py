"""What tuning will take. In: an architecture and a method. Out: the memory of a training step, part by part, and
what others measured beside it.
"""
