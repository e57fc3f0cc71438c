"""What a run takes, computed before it starts: FLOPs, memory, and the ways it can be made."""
