"""The command line: verbs, exit codes, progress display. Only here does mfpar print and exit."""
