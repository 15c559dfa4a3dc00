"""What a run will take before it is started: memory, traffic and time, for any number of ranks."""
