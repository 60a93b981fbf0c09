"""Layer 0: system calls that Python's os module lacks, typed, with no policy.

Imports nothing of ours; anything may import it. Every wrapper is named after its system call and raises OSError.
"""
