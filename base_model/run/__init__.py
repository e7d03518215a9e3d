"""A model run here. In: a complete folder and a prompt. Out: answers with their timings, the machine's limits, and
whether the answers agree.
"""
