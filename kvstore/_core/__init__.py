"""The compiled core: index, leases, eviction, hashing, copies, block I/O. Built from csrc/ by setup.py."""
