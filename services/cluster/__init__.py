"""A whole small cluster on one machine, for trials and tests: `tessera run` for each process, a proxy in front."""
