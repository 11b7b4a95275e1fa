"""Tells receivers how jobs ended: a process of its own, so that one that hangs holds up nobody else."""
