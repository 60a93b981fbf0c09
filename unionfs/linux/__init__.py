"""Layer 0: system calls Python's os module lacks, typed, with no policy.

Imports nothing of ours; anything may import it. Every wrapper is named as its system call and raises OSError.
"""
