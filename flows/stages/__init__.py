"""One file a stage: its version, what decides its result, and the call that does the work."""
