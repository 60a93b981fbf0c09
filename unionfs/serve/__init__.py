"""Layer 2: adapters between a protocol and one UnionFs. Each only translates; OSError becomes an errno here only."""
