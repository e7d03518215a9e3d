"""What tuning will take. In: an architecture and a method. Out: the memory of a training step, part by part, what
was measured to compare it with, and the run itself: as settings, as a script, and tried on this machine.
"""
