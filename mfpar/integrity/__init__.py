"""Whether a file is what was written: every byte against its checksum, every table against what it says of others."""
